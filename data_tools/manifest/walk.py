"""Walk a folder in a fixed order: follow links to folders, skip hidden folders."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from kinemae.data_tools.command import DataError


def walk(root: Path) -> Iterator[tuple[Path, list[str]]]:
    """Every folder from `root` on, and the sorted names of the files in it.

    Raises:
        DataError: a folder cannot be listed, or a link leads to a folder that holds it.
    """
    for place, folders, files in os.walk(root, followlinks=True, onerror=unreadable):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in folders:
            refuse_loop(root, Path(place, name))
        yield Path(place), sorted(files)


def refuse_loop(root: Path, folder: Path) -> None:
    """Reject a link cycle: a link to one of its own parent folders, directly or via other links.

    Args:
        root: where the walk begins.

    Raises:
        DataError: the link is a cycle.
    """
    if not folder.is_symlink():
        return
    target = folder.resolve()
    above = [parent for parent in folder.parents if parent.is_relative_to(root)]
    if any(parent.resolve().is_relative_to(target) for parent in above):
        raise DataError(
            f"{folder}: expected a folder, got a link to {target}, which holds it; fix: remove it"
        )


def unreadable(error: OSError) -> NoReturn:
    """Raise the error for a folder that cannot be listed.

    Raises:
        DataError: always.
    """
    raise DataError(f"cannot list {error.filename}: {error.strerror}; fix: check its permissions") from error
