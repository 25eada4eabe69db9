"""JSON lines writer that survives a kill, a full disk and a file system that fails."""

import json
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from kinemae.data_tools.command import log


class JsonlWriter:
    """Write complete lines. Lines that cannot be written are dropped, with one warning.

    Args:
        first_step: lines of this step and later ones, which a killed run wrote after its checkpoint, are
            removed.
        title: name of the content, for the warning.
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
        """Append lines; each has a "step"."""
        if self._file is None:
            return
        text = "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines).encode()
        try:
            written = os.pwrite(self._file, text, self._bytes)
            if written < len(text):  # the disk is full: the next call raises the reason
                written += os.pwrite(self._file, text[written:], self._bytes + written)
            if written < len(text):
                raise OSError(f"{written} of {len(text)} bytes written")
        except OSError as error:
            self._warn(error)
            with suppress(OSError):  # works on a full disk; otherwise the next lines overwrite the rest
                os.ftruncate(self._file, self._bytes)
            return
        self._bytes += len(text)
        self.is_failing = False

    def close(self) -> None:
        file, self._file = self._file, None
        try:
            if file is not None:
                os.close(file)
        except OSError as error:  # a network file system may report a failed write only here
            self._warn(error)

    def _warn(self, error: OSError) -> None:
        if not self.is_failing:
            log.warning("cannot write %s (%s); training continues without it", self._title, error)
        self.is_failing = True


def drop_lines_from(path: Path, first_step: int) -> None:
    """Remove the lines from a step on, and an incomplete last line. In place: it works on a full disk."""
    if not path.exists():
        return
    kept = 0
    with path.open("rb+") as file:
        for line in file:
            if not _is_complete(line) or json.loads(line)["step"] >= first_step:
                break
            kept += len(line)
        file.truncate(kept)


def _is_complete(line: bytes) -> bool:
    """Check whether a line was written to its end; a power failure may leave other bytes."""
    try:
        json.loads(line)
    except ValueError:
        return False
    return line.endswith(b"\n")
