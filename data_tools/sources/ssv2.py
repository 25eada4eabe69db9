"""Something-Something v2 as it is given out: json lists, a json of the classes, videos/ID.webm."""

import json
from pathlib import Path
from typing import Any

from kinemae.data_tools.command import DataError
from kinemae.data_tools.manifest.entries import Entry, check_list_arguments, folder_of_videos, listing_of
from kinemae.data_tools.manifest.text import read_text
from kinemae.data_tools.manifest.videos import Listing, SourceVideo, split_name
from kinemae.data_tools.sources.base import Source, on_this_machine
from kinemae.data_tools.storage.location import Location

_LISTS = ("train", "validation", "test")


class Ssv2Source(Source):
    """Reads train.json, validation.json, test.json and labels.json; their names may begin with anything.

    The class is the template without its brackets, numbered as in labels.json; what was said about the video
    becomes the column `caption`. Videos of test.json have no label.

    Args:
        labels: folder of the json files, relative to SOURCE (default: `labels` there, else there itself).
        videos: folder of ID.webm, relative to SOURCE (default: 20bn-something-something-v2 or `videos`).
        max_missing_fraction: refuse the lists where more than this share of the videos has no file.
    """

    def __init__(self, *, labels: str = "", videos: str = "", max_missing_fraction: float = 0.5):
        check_list_arguments(max_missing_fraction)
        self.labels = labels
        self.videos = videos
        self.max_missing_fraction = max_missing_fraction

    def listing(self, root: Path | Location) -> Listing:
        """See `Source.listing`."""
        root = on_this_machine(root)
        if not root.is_dir():
            raise DataError(f"{root} must be the folder that holds labels/ and the videos of ssv2")
        lists = root / (self.labels or "labels")
        lists = lists if self.labels or lists.is_dir() else root
        classes = _classes(_only(lists, "labels"))
        folder = folder_of_videos(root, self.videos, ("20bn-something-something-v2", "videos"))
        entries = [
            _entry(f"{file}, entry {number}", item, folder, classes, split_name(name))
            for name in _LISTS
            if (file := _only(lists, name, needed=name == "train")) is not None
            for number, item in enumerate(_load(file, list), start=1)
        ]
        return listing_of(entries, max_missing_fraction=self.max_missing_fraction, classes=classes)


def _only(folder: Path, name: str, *, needed: bool = True) -> Any:
    """The json file whose name ends in `name`, None where there is none and it is not needed."""
    found = sorted(folder.glob(f"*{name}.json"))
    if len(found) > 1:
        raise DataError(f"{folder} holds both {found[0].name} and {found[1].name}: remove one")
    if not found and needed:
        raise DataError(
            f"{folder} holds no {name}.json: expected the json files of ssv2; see source.args.labels"
        )
    return found[0] if found else None


def _load(file: Path, kind: type) -> Any:
    try:
        content = json.loads(read_text(file))
    except json.JSONDecodeError as error:
        raise DataError(f"{file}, line {error.lineno}: this is no json: {error.msg}") from error
    if not isinstance(content, kind):
        raise DataError(f"{file} must hold a json {'object' if kind is dict else 'list'}")
    return content


def _classes(file: Path) -> list[str]:
    """Names in the order of their numbers, which must be 0, 1, 2, ..."""
    numbers = {name: str(number) for name, number in _load(file, dict).items()}
    names = sorted(numbers, key=lambda name: int(numbers[name]) if numbers[name].isdecimal() else -1)
    for expected, name in enumerate(names):
        if numbers[name] != str(expected):
            raise DataError(
                f"{file}: expected classes numbered 0, 1, 2, ..., got {name!r}: {numbers[name]!r}"
            )
    return names


def _entry(where: str, item: Any, folder: Path, classes: list[str], split: str | None) -> Entry:
    if not isinstance(item, dict) or not str(item.get("id", "")).isalnum():
        raise DataError(f'{where}: expected {{"id": "...", "template": "..."}}, got {str(item)[:60]}')
    label = None
    if split != "test":
        label = str(item.get("template", "")).replace("[", "").replace("]", "")
        if label not in classes:
            raise DataError(f"{where}: no class {label!r} in the labels.json of {len(classes)} classes")
    name = f"{item['id']}.webm"
    caption = item.get("label")
    video = SourceVideo(
        path=folder / name,
        name=name,
        label=label,
        split=split,
        extra={"caption": caption} if isinstance(caption, str) else {},
    )
    return Entry(where=where, video=video)
