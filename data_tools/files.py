"""Small files that are whole or absent; large ones, a block at a time."""

from collections.abc import Iterator
from pathlib import Path

_BLOCK = 1 << 20


def write_whole(path: Path, text: str) -> None:
    """Write a small file so that a reader sees the old one or the new one, never half of it."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def read_blocks(path: Path, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
    """A file's bytes, or a range of them, about a megabyte at a time."""
    with path.open("rb") as file:
        file.seek(offset)
        left = length
        while block := file.read(_BLOCK if left is None else min(left, _BLOCK)):
            left = None if left is None else left - len(block)
            yield block
