"""UCF101 with its official splits: trainlist01.txt, testlist01.txt and classInd.txt."""

import re
from pathlib import Path

from kinemae.data_tools.command import DataError
from kinemae.data_tools.manifest.entries import (
    Entry,
    check_fold,
    check_list_arguments,
    folder_of_videos,
    listing_of,
    numbered_lines,
)
from kinemae.data_tools.manifest.videos import Listing, SourceVideo
from kinemae.data_tools.sources.base import Source, on_this_machine
from kinemae.data_tools.storage.location import Location


class Ucf101Source(Source):
    """Reads the official lists beside (or above) the class folders of the videos.

    Classes are numbered as in classInd.txt, from 0 on. Clips cut from one film are a group: CLASS_gXX.

    Args:
        fold: which of the three official splits.
        lists: folder of the lists, relative to SOURCE (default: `ucfTrainTestlist` there, else there itself).
        videos: folder of the class folders, relative to SOURCE (default: `UCF-101` there, else there itself).
        max_missing_fraction: refuse the lists where more than this share of the videos has no file.
    """

    def __init__(
        self, *, fold: int = 1, lists: str = "", videos: str = "", max_missing_fraction: float = 0.5
    ):
        check_list_arguments(max_missing_fraction)
        check_fold(fold)
        self.fold = fold
        self.lists = lists
        self.videos = videos
        self.max_missing_fraction = max_missing_fraction

    def listing(self, root: Path | Location) -> Listing:
        """See `Source.listing`."""
        root = on_this_machine(root)
        guess = root / (self.lists or "ucfTrainTestlist")
        lists = guess if self.lists or guess.is_dir() else root
        folder = folder_of_videos(root, self.videos, ("UCF-101", "UCF101"))
        classes = _classes(lists / "classInd.txt")
        entries = [
            _entry(where, line, folder, classes, split)
            for split in ("train", "test")
            for where, line in numbered_lines(lists / f"{split}list{self.fold:02d}.txt")
        ]
        return listing_of(entries, max_missing_fraction=self.max_missing_fraction, classes=classes)


def _classes(file: Path) -> list[str]:
    """Names in the order of their numbers, which must be 1, 2, 3, ..."""
    names: list[str] = []
    for where, line in numbered_lines(file):
        number, _, name = line.strip().partition(" ")
        if number != str(len(names) + 1) or not name.strip():
            raise DataError(f"{where}: expected `{len(names) + 1} CLASS`, got {line!r}")
        names.append(name.strip())
    return names


def _entry(where: str, line: str, folder: Path, classes: list[str], split: str) -> Entry:
    found = re.fullmatch(r"((\S+)/v_\S+_(g[0-9]+)_c[0-9]+\.\w+)(?: +([0-9]+))?", line.strip())
    if found is None:
        raise DataError(f"{where}: expected CLASS/v_CLASS_gXX_cXX.avi and perhaps a number, got {line!r}")
    name, label, group, number = found.groups()
    if label not in classes:
        raise DataError(f"{where}: no class {label!r} in classInd.txt")
    if number is not None and int(number) != classes.index(label) + 1:
        raise DataError(
            f"{where}: class {label} has number {number} here and {classes.index(label) + 1} in classInd.txt"
        )
    video = SourceVideo(path=folder / name, name=name, label=label, split=split, group=f"{label}_{group}")
    return Entry(where=where, video=video)
