"""Small files that are whole or absent, lines of JSON, large files a block at a time, files held open."""

import json
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

_BLOCK = 1 << 20


def write_whole(path: Path, text: str) -> None:
    """Write a small file so that a reader sees the old one or the new one, never half of it."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def give_usual_mode(path: Path) -> None:
    """Give a file the permissions of any new file in its folder: those that the umask leaves.

    Some libraries write through a temporary file that only its owner may read.
    """
    usual = path.with_name(f"{path.name}.mode")
    usual.touch()
    try:
        path.chmod(stat.S_IMODE(usual.stat().st_mode))
    finally:
        usual.unlink()


def read_blocks(path: Path, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
    """A file's bytes, or a range of them, about a megabyte at a time."""
    with path.open("rb") as file:
        file.seek(offset)
        left = length
        while block := file.read(_BLOCK if left is None else min(left, _BLOCK)):
            left = None if left is None else left - len(block)
            yield block


def json_lines(entries: Iterable[Mapping[str, Any]]) -> str:
    """Entries as JSON, one a line, names readable."""
    return "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries)


def read_journal(journal: Path) -> Iterator[dict[str, Any]]:
    """Entries of a file of JSON lines, up to the line that was being written when a run was killed."""
    for line in journal.read_text(encoding="utf-8").splitlines() if journal.exists() else ():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            return


class Descriptor:
    """An open file that is closed when the last who uses it lets go."""

    def __init__(self, path: str, flags: int, mode: int = 0o666):
        self.number = os.open(path, flags | os.O_CLOEXEC, mode)

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)
