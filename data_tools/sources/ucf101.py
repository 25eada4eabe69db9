"""UCF101 with its official splits: trainlist01.txt, testlist01.txt and classInd.txt."""

import re
from dataclasses import dataclass
from pathlib import Path

from kinemae.data_tools.command import DataError
from kinemae.data_tools.manifest.entries import Entry, build_manifest, folder_of_videos
from kinemae.data_tools.manifest.text import numbered_lines
from kinemae.data_tools.manifest.videos import Manifest, SourceVideo
from kinemae.data_tools.sources.base import ListSource, local_path
from kinemae.data_tools.storage.location import Location


@dataclass(frozen=True, kw_only=True)
class Ucf101Source(ListSource):
    """Reads the official lists and the class folders of the videos.

    Class numbers are those of classInd.txt minus 1. Clips cut from one video are a group: CLASS_gXX.

    Args:
        fold: which of the three official splits.
        lists: folder of the lists, relative to SOURCE; "" selects `ucfTrainTestlist`, else SOURCE itself.
        videos: folder of the class folders, relative to SOURCE; "" selects `UCF-101`, else SOURCE itself.
    """

    fold: int = 1
    lists: str = ""

    def list_videos(self, root: Path | Location) -> Manifest:
        root = local_path(root)
        guess = root / (self.lists or "ucfTrainTestlist")
        lists = guess if self.lists or guess.is_dir() else root
        folder = folder_of_videos(root, self.videos, ("UCF-101", "UCF101"))
        classes = _classes(lists / "classInd.txt")
        entries = [
            _entry(where, line, folder, classes, split)
            for split in ("train", "test")
            for where, line in numbered_lines(lists / f"{split}list{self.fold:02d}.txt")
        ]
        return build_manifest(entries, max_missing_fraction=self.max_missing_fraction, classes=classes)


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
        raise DataError(f"{where}: expected CLASS/v_CLASS_gXX_cXX.avi and optionally a number, got {line!r}")
    name, label, group, number = found.groups()
    if label not in classes:
        raise DataError(f"{where}: expected a class of classInd.txt, got {label!r}")
    if number is not None and int(number) != classes.index(label) + 1:
        raise DataError(
            f"{where}: expected number {classes.index(label) + 1} for class {label}, as in classInd.txt, got "
            f"{number}"
        )
    video = SourceVideo(path=folder / name, name=name, label=label, split=split, group=f"{label}_{group}")
    return Entry(where=where, video=video)
