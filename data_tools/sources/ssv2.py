"""Something-Something v2 in its official form: json lists, a json of the classes, videos/ID.webm."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kinemae.data_tools.command import DataError
from kinemae.data_tools.manifest.entries import Entry, build_manifest, folder_of_videos
from kinemae.data_tools.manifest.text import read_text
from kinemae.data_tools.manifest.videos import Manifest, SourceVideo, split_name
from kinemae.data_tools.sources.base import ListSource, local_path
from kinemae.data_tools.storage.location import Location

_LISTS = ("train", "validation", "test")


@dataclass(frozen=True, kw_only=True)
class Ssv2Source(ListSource):
    """Reads train.json, validation.json, test.json and labels.json; file names may have any prefix.

    The class is the template without its brackets, numbered as in labels.json; the description of the video
    becomes the column `caption`. Videos of test.json have no label.

    Args:
        labels: folder of the json files, relative to SOURCE; "" selects `labels` if it exists, else SOURCE.
        videos: folder of ID.webm, relative to SOURCE; "" selects 20bn-something-something-v2 or `videos` if
            they exist, else SOURCE.
    """

    labels: str = ""

    def list_videos(self, root: Path | Location) -> Manifest:
        root = local_path(root)
        if not root.is_dir():
            raise DataError(f"{root}: expected the folder with labels/ and the videos of ssv2, got a file")
        lists = root / (self.labels or "labels")
        lists = lists if self.labels or lists.is_dir() else root
        classes = _classes(_find(lists, "labels"))
        folder = folder_of_videos(root, self.videos, ("20bn-something-something-v2", "videos"))
        entries = [
            _entry(f"{file}, entry {number}", item, folder, classes, split_name(name))
            for name in _LISTS
            if (file := _find(lists, name, is_required=name == "train")) is not None
            for number, item in enumerate(_load(file, list), start=1)
        ]
        return build_manifest(entries, max_missing_fraction=self.max_missing_fraction, classes=classes)


def _find(folder: Path, name: str, *, is_required: bool = True) -> Any:
    """The json file whose name ends in `name`; None if it does not exist and is not required."""
    found = sorted(folder.glob(f"*{name}.json"))
    if len(found) > 1:
        raise DataError(
            f"{folder}: expected one {name}.json, got {found[0].name} and {found[1].name}; fix: remove one"
        )
    if not found and is_required:
        raise DataError(f"{folder}: expected {name}.json of ssv2, got none; fix: set source.args.labels")
    return found[0] if found else None


def _load(file: Path, kind: type) -> Any:
    try:
        content = json.loads(read_text(file))
    except json.JSONDecodeError as error:
        raise DataError(
            f"{file}, line {error.lineno}: expected JSON, got invalid text: {error.msg}"
        ) from error
    if not isinstance(content, kind):
        raise DataError(f"{file}: expected a json {'object' if kind is dict else 'list'}, got another value")
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
            raise DataError(
                f"{where}: expected one of the {len(classes)} classes of labels.json, got {label!r}"
            )
    name = f"{item['id']}.webm"
    caption = item.get("label")
    extra = {"caption": caption} if isinstance(caption, str) else {}
    video = SourceVideo(path=folder / name, name=name, label=label, split=split, extra=extra)
    return Entry(where=where, video=video)
