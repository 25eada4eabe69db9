"""Lists of VideoMAE, VideoMAE V2 and V-JEPA: each line is a path followed by numbers."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kinemae.data_tools.command import DataError
from kinemae.data_tools.manifest.class_map import class_number, numbered_classes
from kinemae.data_tools.manifest.entries import (
    Entry,
    PathBase,
    build_manifest,
    folder_of_videos,
    video_location,
)
from kinemae.data_tools.manifest.text import check_encoding, numbered_lines
from kinemae.data_tools.manifest.videos import Manifest, SourceVideo, is_video, split_name
from kinemae.data_tools.sources.base import ListSource, local_path
from kinemae.data_tools.storage.location import Location

_EXTENSIONS = (".csv", ".txt", ".list", ".lst")
_NAMES = ("path", "label", "start", "frames", "ignore")
_NUMBER = r"-?[0-9]+(?:\.0*)?"
_DETECTION_LINES = 100  # lines from which the delimiter is detected


@dataclass(frozen=True, kw_only=True)
class PathLabelSource(ListSource):
    """Reads a list, or a folder with one list for each split (train.csv, val.csv, test.csv; or .txt).

    Lines are `path label`, `path`, or `path start frames` as in VideoMAE V2, without labels. Numbers follow
    the last delimiters, so paths may hold spaces; paths may be quoted.

    Args:
        header: the cells of a line, joined by commas: path, label, start, frames, and ignore for others;
            "" detects them. A path with `frames` is a folder of images, or a video if `frames` is -1.
        delimiter: between path and label; "" detects it: whitespace, a comma, a semicolon or |.
        encoding: of the list; "" reads UTF-8, and UTF-16 with a byte order mark.
        videos: the base folder of relative paths, relative to the folder of the list.
        strip: prefix to remove from paths, such as the folder of another machine.
        filename_tmpl, fps: of folders of images, as in mmaction2.
        num_classes: number of classes; 0 infers it from the labels.
    """

    header: str = ""
    delimiter: str = ""
    encoding: str = ""
    strip: str = ""
    filename_tmpl: str = "img_{:05}.jpg"
    fps: float = 25.0
    num_classes: int = 0

    def __post_init__(self) -> None:
        if len(self.delimiter) > 1:
            raise ValueError(f"source.args.delimiter must be one character, got {self.delimiter!r}")
        _header_names(self.header)
        check_encoding(self.encoding)
        super().__post_init__()

    def list_videos(self, root: Path | Location) -> Manifest:
        root = local_path(root)
        lists = [(file, split, numbered_lines(file, self.encoding)) for file, split in _lists_in(root)]
        texts = [line for _, _, lines in lists for _, line in lines]
        delimiter = self.delimiter or _detect_delimiter(texts)
        header = _header_names(self.header) or _detect_header(texts, delimiter)
        base = root if root.is_dir() else root.parent
        folder = folder_of_videos(base, self.videos)
        entries = [
            self._entry(_parse(where, line, header, delimiter, is_given=bool(self.header)), folder, split)
            for _, split, lines in lists
            for where, line in lines
        ]
        return build_manifest(
            entries,
            max_missing_fraction=self.max_missing_fraction,
            classes=numbered_classes(self.num_classes),
            path_base=PathBase(base=base, folder=folder, has_strip=True),
        )

    def _entry(self, line: "_Line", folder: Path, split: str | None) -> Entry:
        path = line.path.removeprefix(self.strip)
        label = line.cells.get("label")
        if label is not None:
            try:
                label = class_number(line.where, label, self.num_classes)
            except DataError as error:
                raise DataError(f"{error}{_label_fix(label)}") from error
        place, url = video_location(line.where, folder, path)
        frames = self._images(line, place)
        fps = self.fps if frames else None
        video = SourceVideo(path=place, url=url, name=path, label=label, split=split, frames=frames, fps=fps)
        return Entry(where=line.where, video=video)

    def _images(self, line: "_Line", folder: Path) -> tuple[str, ...]:
        """The images of a line with `frames`; empty for a video."""
        total = line.number("frames", -1)
        if total < 0:
            return ()
        if folder.is_file() or is_video(folder.name):
            raise DataError(
                f"{line.where}: expected a folder of images, or -1 frames for a video, got {line.text!r}; "
                "fix: add source.args.header=path,ignore,label if the last number is the label"
            )
        first = line.number("start", 0)
        images = tuple(self.filename_tmpl.format(number) for number in range(first, first + total))
        if folder.is_dir() and not (images and (folder / images[-1]).is_file()):
            raise DataError(
                f"{line.where}: expected {total} images from number {first} on in {folder}, got no file for "
                f"the last; fix: check the numbers and source.args.filename_tmpl={self.filename_tmpl}"
            )
        return images


@dataclass(frozen=True, kw_only=True)
class _Line:
    """A line: its location, such as "list.txt, line 7", its text, its path, and its other cells by name."""

    where: str
    text: str
    path: str
    cells: Mapping[str, str]

    def number(self, name: str, default: int) -> int:
        """A cell as a whole number; the default if the line has no such cell."""
        text = self.cells.get(name, str(default))
        if not re.fullmatch(r"-?[0-9]{1,9}", text):
            raise DataError(f"{self.where}: expected a whole number as {name}, got {text!r}")
        return int(text)


def _parse(where: str, text: str, header: Sequence[str], delimiter: str, *, is_given: bool) -> _Line:
    """Split a line into the cells of the header; the path may hold the delimiter."""
    sign = None if delimiter == " " else delimiter
    before = header.index("path")
    left = text.strip().split(sign, before)
    found = [*left[:-1], *left[-1].rsplit(sign, len(header) - 1 - before)]
    if len(found) != len(header) or not found[before].strip():
        shape = (delimiter if delimiter.strip() else " ").join(header).upper()
        hint = "; fix: add source.name=csv for a table with a header row" if "," in text else ""
        raise DataError(f"{where}: expected {shape}, got {text!r}{hint}")
    path = _unquoted(found[before].strip())
    if not is_given and "label" in header:
        _check_one_number(where, text, path)
    cells = {name: cell.strip() for name, cell in zip(header, found, strict=True) if name != "path"}
    return _Line(where=where, text=text, path=path, cells=cells)


def _header_names(header: str) -> list[str]:
    """The names in source.args.header."""
    names = [name.strip() for name in header.split(",")] if header else []
    repeated = [name for name in names if name != "ignore" and names.count(name) > 1]
    if names and ("path" not in names or repeated or not set(names) <= set(_NAMES)):
        raise ValueError(
            f"source.args.header must be path and optionally {', '.join(_NAMES[1:])}, joined by commas, as "
            f"in path,label, got {header!r}"
        )
    return names


def _detect_delimiter(lines: Sequence[str]) -> str:
    """The character before the last number of most lines; a space means any whitespace."""
    counts = Counter({" ": 0})
    for line in lines[:_DETECTION_LINES]:
        found = re.search(rf"(\s*[,;|]\s*|\s+){_NUMBER}\s*$", line)
        counts[(found[1].strip() or " ") if found else " "] += 1
    return max(counts, key=lambda sign: counts[sign])


def _detect_header(lines: Sequence[str], delimiter: str) -> list[str]:
    """The cells of the lines: `path label`, `path`, or `path start frames` as in VideoMAE V2."""
    sign = r"\s+" if delimiter == " " else rf"\s*{re.escape(delimiter)}\s*"
    if any(re.search(rf"{sign}{_NUMBER}{sign}-1\s*$", line) for line in lines):
        return ["path", "start", "frames"]
    are_paths = all(is_video(_unquoted(line.strip()).replace("\\", "/").rpartition("/")[2]) for line in lines)
    if lines and (are_paths or not any(re.search(r"[\s,;|]", line.strip()) for line in lines)):
        return ["path"]
    return ["path", "label"]


def _check_one_number(where: str, text: str, path: str) -> None:
    found = re.fullmatch(rf"(.*\S)[\s,;|]+{_NUMBER}", path)
    if found is not None and is_video(_unquoted(found[1]).rpartition("/")[2]):
        raise DataError(
            f"{where}: expected PATH LABEL, got two numbers in {text!r}; fix: add "
            "source.args.header=path,ignore,label if the last number is the label, or "
            "source.args.header=path,start,frames for the frames of VideoMAE V2"
        )


def _unquoted(path: str) -> str:
    for quote in ('"', "'"):
        if len(path) > 1 and path[0] == path[-1] == quote:
            return path[1:-1].replace(quote * 2, quote)
    return path


def _label_fix(label: str) -> str:
    if label.startswith("-"):
        return "; fix: add source.args.header=path,ignore for videos without labels"
    if re.fullmatch(r"[0-9.]+", label):
        return ""
    if label.lower() == "label":
        return "; fix: add source.name=csv for a list with a header row"
    return "; fix: add source.name=csv source.args.header=path,label for class names"


def _lists_in(root: Path) -> Sequence[tuple[Path, str | None]]:
    """The list itself, or the lists of a folder with the splits that they are named after."""
    if not root.is_dir():
        return [(root, None)]
    files = [file for file in sorted(root.iterdir()) if file.suffix in _EXTENSIONS]
    found = [(file, split_name(file.stem)) for file in files if split_name(file.stem)]
    if not found:
        hint = f"; fix: give the list as SOURCE, such as {files[0]}" if files else ""
        raise DataError(
            f"{root}: expected train.csv (or .txt), optionally val.csv and test.csv, got no list{hint}"
        )
    splits = [split for _, split in found]
    twice = next((file for file, split in found if splits.count(split) > 1), None)
    if twice is not None:
        raise DataError(
            f"{root}: expected one list for each split, got two, one of them {twice.name}; fix: remove the "
            "other, or give one as SOURCE"
        )
    return found
