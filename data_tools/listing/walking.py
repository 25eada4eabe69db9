"""Walk through a folder in a fixed order: links to folders are followed, hidden folders are left out."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from data_tools.command import DataError


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
    """Refuse a link to a folder that holds it, also by way of other links.

    Args:
        root: where the walk begins.

    Raises:
        DataError: it is one.
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
    """Name a folder that cannot be listed.

    Raises:
        DataError: always.
    """
    raise DataError(f"cannot list {error.filename}: {error.strerror}; check that you may read it") from error
