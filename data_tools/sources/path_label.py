"""The lists of VideoMAE, VideoMAE V2 and V-JEPA: each line is a path followed by numbers."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kinemae.data_tools.command import DataError
from kinemae.data_tools.manifest.entries import (
    Entry,
    check_list_arguments,
    class_number,
    folder_of_videos,
    listing_of,
    numbered_classes,
    numbered_lines,
    placed,
)
from kinemae.data_tools.manifest.lines import Line, delimiter_of, header_of, names_of_line
from kinemae.data_tools.manifest.resolve_paths import Searched
from kinemae.data_tools.manifest.text import check_encoding
from kinemae.data_tools.manifest.videos import Listing, SourceVideo, is_video, split_name
from kinemae.data_tools.sources.base import Source, on_this_machine
from kinemae.data_tools.storage.location import Location

_ENDINGS = (".csv", ".txt", ".list", ".lst")


@dataclass(frozen=True, kw_only=True)
class PathLabelSource(Source):
    """Reads a list, or a folder with one list for each split (train.csv, val.csv, test.csv; or .txt).

    Lines are `path label`, `path` alone, or VideoMAE V2's `path start frames`, which has no labels. Numbers
    stand behind the last delimiters, so paths may hold spaces; a path in quotes is understood.

    Args:
        header: what stands on a line, joined by commas: path, label, start, frames, and ignore for others.
            "" finds it. A path with `frames` is a folder of pictures, or a video where `frames` is -1.
        delimiter: between path and label; "" detects it: whitespace, a comma, a semicolon or |.
        encoding: of the list; "" reads UTF-8, and UTF-16 with a byte order mark.
        videos: the folder in which relative paths begin, itself relative to the list's.
        strip: prefix to remove from paths, such as the folder of another machine.
        filename_tmpl, fps: of folders of pictures, as in mmaction2.
        classes: how many classes there are; 0 takes as many as there are labels.
        max_missing_fraction: refuse the list where more than this share of the videos has no file.
    """

    header: str = ""
    delimiter: str = ""
    encoding: str = ""
    videos: str = ""
    strip: str = ""
    filename_tmpl: str = "img_{:05}.jpg"
    fps: float = 25.0
    classes: int = 0
    max_missing_fraction: float = 0.5

    def __post_init__(self) -> None:
        if len(self.delimiter) > 1:
            raise ValueError(f"source.args.delimiter must be one character, got {self.delimiter!r}")
        if self.fps <= 0:
            raise ValueError(f"source.args.fps must be above 0, got {self.fps}")
        if not re.fullmatch(r"[^{}/]*\{:0?[0-9]*d?\}[^{}/]*", self.filename_tmpl):
            raise ValueError(
                f"source.args.filename_tmpl must hold one {{:05}} or so, got {self.filename_tmpl!r}"
            )
        names_of_line(self.header)
        check_encoding(self.encoding)
        check_list_arguments(self.max_missing_fraction, self.classes)

    def listing(self, root: Path | Location) -> Listing:
        """See `Source.listing`."""
        root = on_this_machine(root)
        lists = [(file, split, numbered_lines(file, self.encoding)) for file, split in lists_in(root)]
        texts = [line for _, _, lines in lists for _, line in lines]
        delimiter = self.delimiter or delimiter_of(texts)
        header = names_of_line(self.header) or header_of(texts, delimiter)
        base = root if root.is_dir() else root.parent
        folder = folder_of_videos(base, self.videos)
        entries = [
            self._entry(Line.of(where, line, header, delimiter, is_given=bool(self.header)), folder, split)
            for _, split, lines in lists
            for where, line in lines
        ]
        return listing_of(
            entries,
            max_missing_fraction=self.max_missing_fraction,
            classes=numbered_classes(self.classes),
            searched=Searched(base=base, folder=folder, has_strip=True),
        )

    def _entry(self, line: Line, folder: Path, split: str | None) -> Entry:
        path = line.path.removeprefix(self.strip)
        label = line.cells.get("label")
        if label is not None:
            label = self._label(line, label)
        place, url = placed(line.where, folder, path)
        frames = self._pictures(line, place)
        video = SourceVideo(
            path=place,
            url=url,
            name=path,
            label=label,
            split=split,
            frames=frames,
            fps=self.fps if frames else None,
        )
        return Entry(where=line.where, video=video)

    def _label(self, line: Line, label: str) -> str:
        try:
            return class_number(line.where, label, self.classes)
        except DataError as error:
            raise DataError(f"{error}{_label_hint(label)}") from error

    def _pictures(self, line: Line, folder: Path) -> tuple[str, ...]:
        """The pictures that a line with `frames` names; none for a video."""
        total = line.number("frames", -1)
        if total < 0:
            return ()
        if folder.is_file() or is_video(folder.name):
            raise DataError(
                f"{line.where}: expected a folder of pictures, or -1 frames for a video, got {line.text!r}; "
                "fix: add source.args.header=path,ignore,label where the last number is the label"
            )
        first = line.number("start", 0)
        pictures = tuple(self.filename_tmpl.format(number) for number in range(first, first + total))
        if folder.is_dir() and not (pictures and (folder / pictures[-1]).is_file()):
            raise DataError(
                f"{line.where}: expected {total} pictures from number {first} on in {folder}, the last is "
                f"not there; fix: check the numbers and source.args.filename_tmpl={self.filename_tmpl}"
            )
        return pictures


def _label_hint(label: str) -> str:
    if label.startswith("-"):
        return "; fix: source.args.header=path,ignore takes the videos without labels"
    if re.fullmatch(r"[0-9.]+", label):
        return ""
    if label.lower() == "label":
        return "; fix: a list with a row of names is read by source.name=csv"
    return "; fix: for names of classes add source.name=csv source.args.header=path,label"


def lists_in(root: Path) -> Sequence[tuple[Path, str | None]]:
    """The list itself, or the lists of a folder with the splits that they are named after.

    Raises:
        DataError: the folder holds no list named after a split, or two of one split.
    """
    if not root.is_dir():
        return [(root, None)]
    files = [file for file in sorted(root.iterdir()) if file.suffix in _ENDINGS]
    found = [(file, split_name(file.stem)) for file in files if split_name(file.stem)]
    if not found:
        hint = f"; fix: name the list as SOURCE, such as {files[0]}" if files else ""
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
