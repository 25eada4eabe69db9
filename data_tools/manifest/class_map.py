"""Labels and class numbers: check and unify labels, read and write lists of classes."""

import json
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from kinemae.data_tools.command import DataError, log
from kinemae.data_tools.index import DATASET_NAME, NO_LABEL
from kinemae.data_tools.storage.location import Location, location

CLASSES_NAME = "classes.json"
_INTEGER = re.compile(r"(-?[0-9]+)(\.0*)?")
_MISSING = frozenset(("nan", "<na>", "nat", "null", "#n/a", "n/a"))
_PROBABLY_MISSING = frozenset(("none", "na", "-", "?", "-1", "unknown"))
_MAX_WARNINGS = 5


def sorted_classes(labels: Iterable[str]) -> list[str]:
    """Distinct labels in order: by value if all are integers, else as text."""
    distinct = sorted(set(labels))
    if all(re.fullmatch(r"-?[0-9]+", label) for label in distinct):
        return sorted(distinct, key=int)
    return distinct


def numbered_classes(num_classes: int) -> list[str]:
    """The names of classes that are numbers; empty for 0."""
    return [str(number) for number in range(num_classes)]


def read_classes(text: str, *, may_be_empty: bool = False) -> list[str]:
    """Read the classes of `classes=PATH`, in order.

    Args:
        text: the folder of a data set or its dataset.json, the OUT of an earlier run, a JSON list, or a
            text file with one class per line.
        may_be_empty: whether a list without classes is valid, as of videos without labels.

    Raises:
        DataError: the file does not exist or is invalid, or a class is repeated.
    """
    place = location(text)
    if place.is_dir():
        names = [name for name in (CLASSES_NAME, DATASET_NAME) if (place / name).exists()]
        if not names:
            raise DataError(
                f"classes={text}: expected {CLASSES_NAME} or {DATASET_NAME} in the folder, got none"
            )
        place = place / names[0]
    classes = _parse(place)
    repeated = next((name for position, name in enumerate(classes) if name in classes[:position]), None)
    if repeated is not None or not (classes or may_be_empty):
        got = "no class" if repeated is None else f"{repeated!r} twice"
        raise DataError(f"classes={text}: expected each class once, got {got}")
    return classes


def class_list(labels: Mapping[str, str | None], given: Sequence[str], *, origin: str) -> list[str]:
    """The classes of a data set: the given ones, else the sorted labels.

    Args:
        labels: the label of each video by its name.
        origin: the origin of the given classes, for the error.

    Raises:
        DataError: a label is not among the given classes.
    """
    if not given:
        return sorted_classes(label for label in labels.values() if label is not None)
    known = set(given)
    unknown = [(name, label) for name, label in labels.items() if label is not None and label not in known]
    if unknown:
        name, label = unknown[0]
        raise DataError(
            f"{name}: expected one of the {len(given)} classes of {origin}, got the label {label!r} (and "
            f"{len(unknown) - 1} more unknown labels); fix: correct the labels, or leave classes out"
        )
    return list(given)


def check_label(where: str, label: str) -> str:
    """Reject a text that means a missing value.

    Raises:
        DataError: the text is such a value; the message states the line.
    """
    if label.casefold() in _MISSING:
        raise DataError(
            f"{where}: expected a label, got {label!r}, which means a missing value; fix: add a label, or "
            "use the split unlabelled"
        )
    return label


def class_number(where: str, text: str, num_classes: int, key: str = "source.args.num_classes") -> str:
    """Check a label that must be a whole number, in [0, num_classes) if `num_classes` is not 0.

    Raises:
        DataError: the label is not a number, or out of range; the message states the line.
    """
    if not re.fullmatch(r"[0-9]+(\.0*)?", text):
        raise DataError(f"{where}: expected a label that is a whole number, 0 or more, got {text!r}")
    number = int(text.partition(".")[0])
    if num_classes and number >= num_classes:
        raise DataError(
            f"{where}: expected a label from 0 to {num_classes - 1} ({key}={num_classes}), got {number}"
        )
    return str(number)


def label_text(value: object) -> str | None:
    """Convert a label from JSON to text: text, an integer or an integral float; None for other values."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value) if isinstance(value, str | int) and not isinstance(value, bool) else None


def unified_labels(labels: Iterable[str | None]) -> Mapping[str, str]:
    """Unify the spellings of integers: 1.0 becomes 1; leading zeros go if one number has two spellings.

    Returns:
        The label to use for each given label; empty unless all labels are integers.
    """
    distinct = {label for label in labels if label is not None}
    short = {label: match[1] for label in distinct if (match := _INTEGER.fullmatch(label)) is not None}
    if len(short) != len(distinct):
        return {}
    spellings: dict[int, set[str]] = defaultdict(set)
    for text in short.values():
        spellings[int(text)].add(text)
    is_ambiguous = any(len(texts) > 1 for texts in spellings.values())
    return {label: str(int(text)) if is_ambiguous else text for label, text in short.items()}


def warn_of_labels(classes: Sequence[str]) -> None:
    """Log labels that are probably one class, and labels that probably mean a missing value."""
    alike: dict[str, list[str]] = defaultdict(list)
    for label in classes:
        plain = " ".join(re.split(r"[\s_]+", unicodedata.normalize("NFC", label).casefold().strip()))
        alike[plain].append(label)
    for labels in [labels for labels in alike.values() if len(labels) > 1][:_MAX_WARNINGS]:
        log.warning(
            "the labels %s are %d classes: they differ only in case, spaces or underscores",
            *(" and ".join(map(repr, labels)), len(labels)),
        )
    missing = [label for label in classes if label.casefold() in _PROBABLY_MISSING]
    if missing:
        log.warning(
            "the label %r is used as a class; for videos without a class use the split unlabelled", missing[0]
        )
    numbers = [int(label) for label in classes if re.fullmatch(r"[0-9]+", label)]
    if len(numbers) > 1 and len(numbers) == len(classes) and numbers != list(range(len(classes))):
        log.info(
            "the labels are whole numbers, but not 0 to %d: class numbers follow their order, label %s is 0",
            *(len(classes) - 1, classes[0]),
        )


def warn_of_absent_classes(split: str, classes: Sequence[str], present: set[int]) -> None:
    """Log the classes without a video in a split that has labels.

    Args:
        present: the class numbers of its videos.
    """
    absent = [name for number, name in enumerate(classes) if number not in present]
    if absent and present != {NO_LABEL}:
        log.warning("%s has no video of %d classes, first %s", split, len(absent), absent[0])


def _parse(place: Location) -> list[str]:
    try:
        text = place.read().decode("utf-8-sig")
        if not place.name.endswith(".json"):
            return [line.strip() for line in text.splitlines() if line.strip()]
        content = json.loads(text)
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"classes={place}: expected a list of classes, got invalid text: {error}") from error
    names = content.get("classes") if isinstance(content, dict) else content
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataError(
            f"classes={place}: expected a list of texts, or an object with such a list as classes, got "
            f"{str(names)[:40]}"
        )
    return names
