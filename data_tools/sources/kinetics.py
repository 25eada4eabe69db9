"""The official Kinetics csv files, with the videos that one could still download."""

import csv
import io
from collections import defaultdict
from pathlib import Path

from kinemae.data_tools.command import DataError
from kinemae.data_tools.manifest.entries import Entry, check_list_arguments, folder_of_videos, listing_of
from kinemae.data_tools.manifest.text import read_text
from kinemae.data_tools.manifest.videos import Listing, SourceVideo, is_video, split_name
from kinemae.data_tools.manifest.walk import walk
from kinemae.data_tools.sources.base import Source, on_this_machine
from kinemae.data_tools.storage.location import Location

_COLUMNS = ("youtube_id", "time_start", "time_end", "split")


class KineticsSource(Source):
    """Reads label,youtube_id,time_start,time_end,split and finds {youtube_id}_{start:06d}_{end:06d}.mp4.

    SOURCE is one of the csv files or a folder of them (or of `annotations/`). The videos may lie at any depth
    below their folder, in class folders or in none. Clips of one YouTube video are a group.

    Args:
        videos: the folder of the videos, relative to SOURCE's (default: `videos` there, else there itself).
        max_missing_fraction: refuse the list where more than this share of the videos has no file.
    """

    def __init__(self, *, videos: str = "", max_missing_fraction: float = 0.5):
        check_list_arguments(max_missing_fraction)
        self.videos = videos
        self.max_missing_fraction = max_missing_fraction

    def listing(self, root: Path | Location) -> Listing:
        """See `Source.listing`."""
        root = on_this_machine(root)
        files = _files(root)
        base = root if root.is_dir() else root.parent
        folder = folder_of_videos(base, self.videos, ("videos", "../videos"))
        places = _places(folder)
        entries = [entry for file in files for entry in _entries(file, folder, places)]
        listing = listing_of(entries, max_missing_fraction=self.max_missing_fraction)
        named = {entry.video.path for entry in entries}
        others = sum(path not in named for paths in places.values() for path in paths)
        return Listing(videos=listing.videos, missing=listing.missing, ignored=others)


def _files(root: Path) -> list[Path]:
    if not root.is_dir():
        return [root]
    files = [
        file
        for folder in (root, root / "annotations")
        for file in sorted(folder.glob("*.csv"))
        if set(_COLUMNS) <= set(_header(file))
    ]
    if not files:
        raise DataError(f"{root} holds no Kinetics csv: expected label,{','.join(_COLUMNS)} as a first line")
    return files


def _header(file: Path) -> list[str]:
    return next(csv.reader(read_text(file).splitlines()), [])


def _entries(file: Path, folder: Path, places: dict[str, list[Path]]) -> list[Entry]:
    reader = csv.DictReader(io.StringIO(read_text(file), newline=""), strict=True)
    header = reader.fieldnames or []
    if not set(_COLUMNS) <= set(header):
        raise DataError(f"{file}, line 1: expected label,{','.join(_COLUMNS)}, got {','.join(header)!r}")
    try:
        return [_entry(f"{file}, line {reader.line_num}", row, folder, places) for row in reader]
    except csv.Error as error:
        raise DataError(f"{file}, line {reader.line_num}: this is no csv: {error}") from error


def _entry(where: str, row: dict[str, str | None], folder: Path, places: dict[str, list[Path]]) -> Entry:
    if None in row or None in row.values():
        raise DataError(f"{where}: expected as many cells as the header has")
    cells = {name: (text or "").strip() for name, text in row.items()}
    split = split_name(cells["split"])
    if split is None:
        raise DataError(f"{where}: no split named {cells['split']!r}; there is train, validate and test")
    stem = f"{cells['youtube_id']}_{_second(where, cells, 'time_start')}_{_second(where, cells, 'time_end')}"
    label = cells.get("label") or None
    path = _choose(where, places.get(stem, []), label) or folder / f"{stem}.mp4"
    video = SourceVideo(
        path=path,
        name=path.relative_to(folder).as_posix(),
        label=label,
        split=split,
        group=cells["youtube_id"],
    )
    return Entry(where=where, video=video)


def _second(where: str, cells: dict[str, str], column: str) -> str:
    try:
        return f"{int(float(cells[column])):06d}"
    except (ValueError, OverflowError) as error:
        raise DataError(f"{where}: {column} must be a number of seconds, got {cells[column]!r}") from error


def _choose(where: str, paths: list[Path], label: str | None) -> Path | None:
    """The one file, or the one in the folder of the class, where another class has a copy."""
    if len(paths) > 1 and label is not None:
        words = label.replace(" ", "_").casefold()
        paths = [path for path in paths if path.parent.name.replace(" ", "_").casefold() == words] or paths
    if len(paths) > 1:
        raise DataError(f"{where}: both {paths[0]} and {paths[1]} have that name; remove one")
    return paths[0] if paths else None


def _places(folder: Path) -> dict[str, list[Path]]:
    """All videos below a folder by their name without ending."""
    found: dict[str, list[Path]] = defaultdict(list)
    for place, files in walk(folder):
        for name in files:
            if is_video(name):
                found[name.rpartition(".")[0]].append(place / name)
    return found
