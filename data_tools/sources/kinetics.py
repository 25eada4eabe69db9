"""The official Kinetics csv files, with the subset of videos that is available."""

import csv
import io
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path

from kinemae.data_tools.command import DataError
from kinemae.data_tools.manifest.entries import Entry, build_manifest, folder_of_videos
from kinemae.data_tools.manifest.text import read_text
from kinemae.data_tools.manifest.videos import Manifest, SourceVideo, is_video, split_name, walk
from kinemae.data_tools.sources.base import ListSource, local_path
from kinemae.data_tools.storage.location import Location

_COLUMNS = ("youtube_id", "time_start", "time_end", "split")


@dataclass(frozen=True, kw_only=True)
class KineticsSource(ListSource):
    """Reads label,youtube_id,time_start,time_end,split and finds {youtube_id}_{start:06d}_{end:06d}.mp4.

    SOURCE is one of the csv files, or a folder with them or with `annotations/`. The videos may be at any
    depth below their folder, with or without class folders. Clips of one YouTube video are a group.

    Args:
        videos: the folder of the videos, relative to the folder of SOURCE; "" selects `videos` if it exists,
            else that folder itself.
    """

    def list_videos(self, root: Path | Location) -> Manifest:
        root = local_path(root)
        base = root if root.is_dir() else root.parent
        folder = folder_of_videos(base, self.videos, ("videos", "../videos"))
        paths = _paths_by_stem(folder)
        entries = [entry for file in _lists(root) for entry in _entries(file, folder, paths)]
        manifest = build_manifest(entries, max_missing_fraction=self.max_missing_fraction)
        listed = {entry.video.path for entry in entries}
        return replace(
            manifest, ignored=sum(path not in listed for found in paths.values() for path in found)
        )


def _lists(root: Path) -> list[Path]:
    if not root.is_dir():
        return [root]
    files = [
        file
        for folder in (root, root / "annotations")
        for file in sorted(folder.glob("*.csv"))
        if set(_COLUMNS) <= set(next(csv.reader(read_text(file).splitlines()), []))
    ]
    if not files:
        raise DataError(f"{root}: expected a csv with the columns label,{','.join(_COLUMNS)}, got none")
    return files


def _entries(file: Path, folder: Path, paths: dict[str, list[Path]]) -> list[Entry]:
    reader = csv.DictReader(io.StringIO(read_text(file), newline=""), strict=True)
    header = reader.fieldnames or []
    if not set(_COLUMNS) <= set(header):
        raise DataError(f"{file}, line 1: expected label,{','.join(_COLUMNS)}, got {','.join(header)!r}")
    try:
        return [_entry(f"{file}, line {reader.line_num}", row, folder, paths) for row in reader]
    except csv.Error as error:
        raise DataError(f"{file}, line {reader.line_num}: expected csv, got invalid text: {error}") from error


def _entry(where: str, row: dict[str, str | None], folder: Path, paths: dict[str, list[Path]]) -> Entry:
    if None in row or None in row.values():
        raise DataError(f"{where}: expected as many cells as in the header, got another number")
    cells = {name: (text or "").strip() for name, text in row.items()}
    split = split_name(cells["split"])
    if split is None:
        raise DataError(f"{where}: expected the split train, validate or test, got {cells['split']!r}")
    stem = f"{cells['youtube_id']}_{_second(where, cells, 'time_start')}_{_second(where, cells, 'time_end')}"
    label = cells.get("label") or None
    path = _choose(where, paths.get(stem, []), label) or folder / f"{stem}.mp4"
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
        raise DataError(f"{where}: expected seconds in {column}, got {cells[column]!r}") from error


def _choose(where: str, paths: list[Path], label: str | None) -> Path | None:
    """The only file, or the one in the folder of the class if other classes have copies."""
    if len(paths) > 1 and label is not None:
        words = label.replace(" ", "_").casefold()
        paths = [path for path in paths if path.parent.name.replace(" ", "_").casefold() == words] or paths
    if len(paths) > 1:
        raise DataError(
            f"{where}: expected one file of that name, got {paths[0]} and {paths[1]}; fix: remove one"
        )
    return paths[0] if paths else None


def _paths_by_stem(folder: Path) -> dict[str, list[Path]]:
    """All videos below a folder by their names without extensions."""
    found: dict[str, list[Path]] = defaultdict(list)
    for place, files in walk(folder):
        for name in filter(is_video, files):
            found[name.rpartition(".")[0]].append(place / name)
    return found
