"""Files of pieces: one a writing process, and any process reads any run of values out of them.

`pieces-00000-of-00004.safetensors` holds flat float32 tensors named `KIND/NAME@START`, for example
`exp_avg/encoder.blocks.0.norm.weight@128`. The format is that of the safetensors library, which reads them: a
length, a JSON header, raw bytes. They are written without it, a block at a time: the checksum is taken on the
way, and nothing is copied once more.
"""

import json
import math
import os
import zlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from data_tools.command import CheckpointError
from data_tools.files import read_blocks
from pretrain.runtime.pieces import Piece

MOMENTS = ("exp_avg", "exp_avg_sq")

_VALUE_BYTES = 4
_ALIGNMENT = 64
_BLOCK_VALUES = 1 << 20


class Span(NamedTuple):
    """A run of one flattened parameter's values in a file: `start` to before `stop`."""

    file: str
    kind: str
    name: str
    start: int
    stop: int

    @property
    def tensor(self) -> str:
        """What the file calls it."""
        return f"{self.kind}/{self.name}@{self.start}"


class FileMark(NamedTuple):
    """By which a file is known again: size in bytes and checksum."""

    size: int
    crc32: int


def spans_of(pieces: Iterable[Piece], file: str) -> list[Span]:
    """How pieces lie in a file."""
    return [Span(file, piece.kind, piece.name, piece.start, piece.stop) for piece in pieces]


def write_pieces(path: Path, spans: Sequence[Span], values: Iterable[Tensor]) -> FileMark:
    """Write the values of `spans`, one span's after the other's, and wait until they are on the disk.

    Other threads run meanwhile: the interpreter's lock is let go for each block.

    Args:
        values: flat float32 tensors on any device, cut anywhere.

    Raises:
        OSError: for example on a full disk.
    """
    size = checksum = 0
    with path.open("wb") as file:
        for block in _bytes_of(spans, values):
            checksum = zlib.crc32(block, checksum)
            size += len(block)
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
    return FileMark(size, checksum)


def mark_of(path: Path) -> FileMark:
    """A file as it is now; every byte is read.

    Raises:
        OSError: it cannot be read.
    """
    size = checksum = 0
    for block in read_blocks(path):
        checksum = zlib.crc32(block, checksum)
        size += len(block)
    return FileMark(size, checksum)


def read_spans(path: Path) -> list[Span]:
    """What a file of pieces holds, by its header.

    Raises:
        ValueError: it is no such file.
    """
    found = []
    try:
        with safe_open(path, framework="pt") as file:
            for tensor in file.keys():  # noqa: SIM118, it is no mapping
                kind, _, place = tensor.partition("/")
                name, _, start = place.rpartition("@")
                (count,) = file.get_slice(tensor).get_shape()
                found.append(Span(path.name, kind, name, int(start), int(start) + count))
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path.name}: {error}") from error
    return found


class PieceStore:
    """The files of one checkpoint: which values they hold, and their values."""

    def __init__(self, folder: Path, spans: Iterable[Span]):
        self._folder = folder
        self._files: dict[str, Any] = {}
        self._spans: dict[tuple[str, str], list[Span]] = defaultdict(list)
        for span in sorted(spans, key=lambda span: span.start):
            self._spans[span.kind, span.name].append(span)

    def find_fault(self, shapes: Mapping[str, tuple[int, ...]], updates: Mapping[str, int]) -> str | None:
        """What keeps the files from holding each value once, or None.

        Args:
            shapes: of every parameter and buffer.
            updates: how often each trainable parameter was updated; those never updated may have no moments.
        """
        wanted = {("weight", name) for name in shapes}
        wanted |= {(kind, name) for name, done in updates.items() for kind in MOMENTS if done}
        allowed = wanted | {(kind, name) for name in updates for kind in MOMENTS}
        for kind, name in sorted(self._spans.keys() - allowed):
            return f"it holds {kind} of {name}, which no parameter has"
        for kind, name in sorted(wanted | self._spans.keys()):
            reached = 0
            for span in self._spans.get((kind, name), ()):
                if span.start != reached:
                    what = "are missing" if span.start > reached else "are there twice"
                    first, last = sorted((reached, span.start))
                    return f"values {first} to {last} of {kind} of {name} {what}"
                reached = span.stop
            if reached != math.prod(shapes[name]):
                return f"{kind} of {name} has {reached} values, not {math.prod(shapes[name])}"
        return None

    def read(self, name: str, kind: str, start: int, stop: int) -> Tensor:
        """The values `start` to before `stop`, float32 on the CPU; zeros where a moment was never stored.

        Only these are read from the disk, whichever files they lie in.

        Raises:
            CheckpointError: a file cannot be read.
        """
        values_V = torch.zeros(stop - start)
        for span in self._spans.get((kind, name), ()):
            first, last = max(start, span.start), min(stop, span.stop)
            if first < last:
                stored = self._open(span.file).get_slice(span.tensor)
                # A copy: what the library hands out may be the mapped file itself.
                values_V[first - start : last - start] = stored[first - span.start : last - span.start]
        return values_V

    def _open(self, name: str) -> Any:
        if name not in self._files:
            try:
                self._files[name] = safe_open(self._folder / name, framework="pt")
            except (SafetensorError, OSError) as error:
                raise CheckpointError(f"cannot read {self._folder / name}: {error}") from error
        return self._files[name]


def _bytes_of(spans: Sequence[Span], values: Iterable[Tensor]) -> Iterable[memoryview | bytes]:
    yield _header(spans)
    for run_V in values:
        for block_V in run_V.split(_BLOCK_VALUES):
            yield memoryview(block_V.cpu().numpy()).cast("B")


def _header(spans: Sequence[Span]) -> bytes:
    place, entries = 0, {}
    for span in spans:
        end = place + _VALUE_BYTES * (span.stop - span.start)
        entries[span.tensor] = {
            "dtype": "F32",
            "shape": [span.stop - span.start],
            "data_offsets": [place, end],
        }
        place = end
    text = json.dumps(entries).encode()
    text += b" " * (-(8 + len(text)) % _ALIGNMENT)  # so that the values lie even in the mapped file
    return len(text).to_bytes(8, "little") + text
