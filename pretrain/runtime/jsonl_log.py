"""A file of one JSON line a step that goes on where a run was cut, and that a full disk does not end."""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from kinemae.data_tools.command import log


class Journal:
    """Lines are there whole or not at all; those that cannot be written are warned of once and left out.

    Args:
        first_step: lines of this step and later ones, which a killed run wrote past its checkpoint, are
            dropped.
        title: of what it is, for the warning.
    """

    def __init__(self, path: Path, *, first_step: int, title: str):
        self._path = path
        self._title = title
        self._file: int | None = None
        self._bytes = 0
        self.is_failing = False
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            drop_lines_from(path, first_step)
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
            self._bytes = os.lseek(self._file, 0, os.SEEK_END)
        except OSError as error:
            self._warn(error)

    def write(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Add lines; each holds its "step"."""
        if self._file is None:
            return
        text = "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines).encode()
        try:
            written = os.pwrite(self._file, text, self._bytes)
            if written < len(text):  # the disk filled up in the midst of it: the next attempt says so
                written += os.pwrite(self._file, text[written:], self._bytes + written)
            if written < len(text):
                raise OSError(f"{written} of {len(text)} bytes written")
        except OSError as error:
            self._warn(error)
            os.ftruncate(self._file, self._bytes)  # takes no room
            return
        self._bytes += len(text)
        self.is_failing = False

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
        self._file = None

    def _warn(self, error: OSError) -> None:
        if not self.is_failing:
            log.warning("cannot write %s (%s); training goes on without it", self._title, error)
        self.is_failing = True


def drop_lines_from(path: Path, first_step: int) -> None:
    """Take out of a journal what a killed run wrote past its checkpoint; in place, which takes no room."""
    if not path.exists():
        return
    kept = 0
    with path.open("rb+") as file:
        for line in file:
            if not _is_whole(line) or json.loads(line)["step"] >= first_step:
                break
            kept += len(line)
        file.truncate(kept)


def _is_whole(line: bytes) -> bool:
    """Whether it was written to its end, and reached the disk where the power was cut."""
    try:
        json.loads(line)
    except ValueError:
        return False
    return line.endswith(b"\n")
