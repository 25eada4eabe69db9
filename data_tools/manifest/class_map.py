"""Which label has which number: written once, and used again for the next data set."""

import json
import re
from collections.abc import Sequence

from kinemae.data_tools.command import DataError
from kinemae.data_tools.index import DATASET_NAME
from kinemae.data_tools.manifest.videos import SourceVideo
from kinemae.data_tools.storage.location import Location, location

CLASSES_NAME = "classes.json"


def sorted_classes(labels: Sequence[str]) -> list[str]:
    """Distinct labels in order: as numbers where all are integers, else as text."""
    distinct = sorted(set(labels))
    if all(re.fullmatch(r"-?[0-9]+", label) for label in distinct):
        return sorted(distinct, key=int)
    return distinct


def read_classes(text: str) -> list[str]:
    """The classes that `classes=PATH` names, in their order.

    Args:
        text: a data set's folder or its dataset.json, the OUT of an earlier run, or a list: JSON, or a
            text file with a class on each line.

    Raises:
        DataError: nothing of that kind is there, or a class stands there twice.
    """
    place = location(text)
    if place.is_dir():
        names = [name for name in (CLASSES_NAME, DATASET_NAME) if (place / name).exists()]
        if not names:
            raise DataError(f"classes={text}: the folder holds neither {CLASSES_NAME} nor {DATASET_NAME}")
        place = place / names[0]
    classes = _parse(place)
    repeated = next((name for position, name in enumerate(classes) if name in classes[:position]), None)
    if repeated is not None or not classes:
        what = "no class" if repeated is None else f"{repeated!r} twice"
        raise DataError(f"classes={text} names {what}: expected each class once")
    return classes


def class_list(videos: Sequence[SourceVideo], given: Sequence[str], *, of: str) -> list[str]:
    """The classes of a data set: the given ones, else the labels that occur, sorted.

    Args:
        of: where the given ones come from, for the message.

    Raises:
        DataError: a video has a label that is not among the given ones.
    """
    if not given:
        return sorted_classes([video.label for video in videos if video.label is not None])
    known = set(given)
    strange = [video for video in videos if video.label is not None and video.label not in known]
    if strange:
        raise DataError(
            f"{strange[0].name} has the label {strange[0].label!r}, which is not among the {len(given)} "
            f"classes of {of}, as have {len(strange) - 1} more: mend the label, or leave classes out"
        )
    return list(given)


def _parse(place: Location) -> list[str]:
    try:
        text = place.read().decode("utf-8-sig")
        if not place.name.endswith(".json"):
            return [line.strip() for line in text.splitlines() if line.strip()]
        content = json.loads(text)
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"classes={place} cannot be read: {error}") from error
    names = content.get("classes") if isinstance(content, dict) else content
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataError(
            f"classes={place} must hold a list of texts, or an object with such a list as classes"
        )
    return names
