"""The folder that a command writes: free, or with the result of the same command."""

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from kinemae.data_tools.command import DataError, log
from kinemae.data_tools.folder_checks import list_data_sets
from kinemae.data_tools.index import DATASET_NAME, open_index
from kinemae.data_tools.storage.location import Location, location

# Tars that a killed command left, named by their content, or tars of parts of `shard`, which `merge` keeps.
_EXPECTED = re.compile(r"(shard-(\d{6}~[0-9a-f]{8}|[0-9a-f]{8}-\d{6})|part-\d+-of-\d+-\d+)\.tar")


def is_complete(folder: Location, made_by: Mapping[str, Any]) -> bool:
    """Check whether a folder already holds the result of a command.

    Args:
        made_by: fields of the result's `made_by` that identify command, options and sources.

    Raises:
        DataError: it holds another data set, data sets in subfolders or other tars, or is in a data set.
    """
    if (folder / DATASET_NAME).exists():
        present = open_index(folder, check_shards=False).made_by
        if all(present.get(name) == value for name, value in made_by.items()):
            log.info("%s: complete already", folder)
            return True
        add = ", or use `kinemae data add`" if "added" in made_by else ""
        raise DataError(
            f"{folder}: expected a new folder, got a data set that another command, other sources or other "
            f"options made; fix: give another OUT{add}"
        )
    if inside := list_data_sets(folder, DATASET_NAME):
        raise DataError(
            f"{folder}: expected a folder without data sets in subfolders, got {folder / inside[0]}, which "
            "readers of the folder would not find any more; fix: give another OUT"
        )
    if any(file.exists() for file in _above(folder, DATASET_NAME)):
        raise DataError(
            f"{folder}: expected a folder outside a data set, got one inside; fix: give another OUT"
        )
    if others := [name for name in folder.list(".tar") if not _EXPECTED.fullmatch(name)]:
        raise DataError(
            f"{folder}: expected a folder without tars, got {len(others)}, first {others[0]}; "
            "fix: give another OUT"
        )
    return False


def beside(folder: Location, name: str) -> Location:
    """A file or folder in the parent of a folder."""
    if folder.path is None:
        return folder / f"../{name}"
    return location(Path(os.path.abspath(folder.path)).parent) / name


def _above(folder: Location, name: str) -> list[Location]:
    """The path of a file in each ancestor of a folder; at a URL, in its two nearest ancestors."""
    if folder.path is None:
        return [folder / f"../{name}", folder / f"../../{name}"]
    return [location(parent / name) for parent in Path(os.path.abspath(folder.path)).parents]


def remove_refused(folder: Location, names: Iterable[str]) -> None:
    """Delete shards of a refused command, except those that the data set of the other process has."""
    if folder.is_remote and (folder / DATASET_NAME).exists():
        used = set(open_index(folder, check_shards=False).shards.column("name"))
        for name in sorted(set(names) - used):
            (folder / name).remove()
