"""VideoMAE's and V-JEPA's lists: a path, a space, an integer label."""

from pathlib import Path

from data_tools.command import DataError
from data_tools.listing.entries import (
    Entry,
    check_list_arguments,
    class_number,
    folder_of_videos,
    listing_of,
    numbered_classes,
    numbered_lines,
    placed,
)
from data_tools.listing.videos import Listing, SourceVideo, split_name
from data_tools.sources.base import Source, on_this_machine
from data_tools.storage.location import Location

_ENDINGS = (".csv", ".txt", ".list")


class PathLabelSource(Source):
    """Reads a list, or a folder with one list for each split (train.csv, val.csv, test.csv; or .txt).

    The label is what follows the last space, so paths may hold spaces; a path in double quotes is understood.

    Args:
        delimiter: between path and label.
        videos: the folder in which relative paths begin, itself relative to the list's.
        classes: how many classes there are; 0 takes as many as there are labels.
        max_missing_fraction: refuse the list where more than this share of the videos has no file.
    """

    def __init__(
        self, *, delimiter: str = " ", videos: str = "", classes: int = 0, max_missing_fraction: float = 0.5
    ):
        if len(delimiter) != 1:
            raise ValueError(f"source.args.delimiter must be one character, got {delimiter!r}")
        check_list_arguments(max_missing_fraction, classes)
        self.delimiter = delimiter
        self.videos = videos
        self.classes = classes
        self.max_missing_fraction = max_missing_fraction

    def listing(self, root: Path | Location) -> Listing:
        """See `Source.listing`."""
        root = on_this_machine(root)
        entries = [
            self._entry(where, line, file.parent, split)
            for file, split in lists_in(root)
            for where, line in numbered_lines(file)
        ]
        return listing_of(
            entries,
            max_missing_fraction=self.max_missing_fraction,
            classes=numbered_classes(self.classes),
        )

    def _entry(self, where: str, line: str, folder: Path, split: str | None) -> Entry:
        path, _, label = line.strip().rpartition(self.delimiter)
        if not path.strip():
            raise DataError(f"{where}: expected PATH{self.delimiter}LABEL, got {line!r}")
        label = class_number(where, label.strip(), self.classes)
        path = path.strip()
        if len(path) > 1 and path[0] == path[-1] == '"':
            path = path[1:-1].replace('""', '"')
        place, url = placed(where, folder_of_videos(folder, self.videos), path)
        return Entry(where=where, video=SourceVideo(path=place, url=url, name=path, label=label, split=split))


def lists_in(root: Path) -> list[tuple[Path, str | None]]:
    """The list itself, or the lists of a folder with the splits that they are named after.

    Raises:
        DataError: the folder holds no list named after a split, or two of one split.
    """
    if not root.is_dir():
        return [(root, None)]
    files = [file for file in sorted(root.iterdir()) if file.suffix in _ENDINGS and split_name(file.stem)]
    found = [(file, split_name(file.stem)) for file in files]
    if not found:
        raise DataError(
            f"{root} holds no list: expected train.csv (or .txt) and perhaps val.csv and test.csv"
        )
    splits = [split for _, split in found]
    twice = next((file for file, split in found if splits.count(split) > 1), None)
    if twice is not None:
        raise DataError(f"{root} holds two lists of one split, one of them {twice.name}: remove the other")
    return found
