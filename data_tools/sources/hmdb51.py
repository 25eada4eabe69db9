"""HMDB51 with its official splits: CLASS_test_split1.txt files that give each video a 0, 1 or 2."""

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

_SPLITS = {"0": None, "1": "train", "2": "test"}


class Hmdb51Source(Source):
    """Reads the official split files beside the class folders of the videos.

    1 means train, 2 test; videos of code 0 belong to neither and are left out, counted.

    Args:
        fold: which of the three official splits.
        lists: folder of the split files, relative to SOURCE (default: `testTrainMulti_7030_splits` or
            `splits` there, else there itself).
        videos: folder of the class folders, relative to SOURCE (default: `videos` or `hmdb51_org` there, else
            there itself).
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
        ending = f"_test_split{self.fold}.txt"
        guesses = [self.lists] if self.lists else ["testTrainMulti_7030_splits", "splits", "."]
        files = next((found for guess in guesses if (found := sorted((root / guess).glob(f"*{ending}")))), [])
        if not files:
            raise DataError(
                f"{root} holds no CLASS{ending}: expected the split files of HMDB51; see source.args.lists"
            )
        folder = folder_of_videos(root, self.videos, ("videos", "hmdb51_org"))
        rows = [
            _entry(where, line, folder, file.name.removesuffix(ending))
            for file in files
            for where, line in numbered_lines(file)
        ]
        entries = [entry for entry in rows if entry is not None]
        return listing_of(
            entries,
            max_missing_fraction=self.max_missing_fraction,
            classes=[file.name.removesuffix(ending) for file in files],
            ignored=len(rows) - len(entries),
        )


def _entry(where: str, line: str, folder: Path, label: str) -> Entry | None:
    name, _, code = line.strip().rpartition(" ")
    if not name or code not in _SPLITS:
        raise DataError(f"{where}: expected NAME.avi and 0, 1 or 2, got {line!r}")
    split = _SPLITS[code]
    if split is None:
        return None
    name = f"{label}/{name.strip()}"
    return Entry(where=where, video=SourceVideo(path=folder / name, name=name, label=label, split=split))
