"""Files of pieces: one a writing process, and any process reads any run of values out of them.

`pieces-00000-of-00004.safetensors` holds flat float32 tensors named `KIND/NAME@START`, for example
`exp_avg/encoder.blocks.0.norm.weight@128`. The format is that of the safetensors library, which reads them: a
length, a JSON header, raw bytes. They are written without it, a block at a time: the checksum is taken on the
way, without another copy. They are read by `pread`, not by mapping: an error of the file system raises
`OSError` instead of killing the process.
"""

import errno
import json
import os
import zlib
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from kinemae.data_tools.command import CheckpointError
from kinemae.data_tools.files import Descriptor, read_blocks
from kinemae.pretrain.runtime.file_retries import retried
from kinemae.pretrain.runtime.span_table import Span, SpanTable
from kinemae.pretrain.runtime.state_shards import Piece

_VALUE_BYTES = 4
_ALIGNMENT = 64
_BLOCK_VALUES = 1 << 20
_MOST_OPEN = 16


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
        OSError: it cannot be read.
    """
    found = []
    for tensor, (begin, end) in _read_header(path).items():
        kind, _, place = tensor.partition("/")
        name, _, start = place.rpartition("@")
        if not name or not start.isdigit():
            raise ValueError(f"{path.name}: expected the name of a piece, got {tensor!r}")
        found.append(Span(path.name, kind, name, int(start), int(start) + (end - begin) // _VALUE_BYTES))
    return found


class PieceStore:
    """The values in the files of one checkpoint."""

    def __init__(self, folder: Path, table: SpanTable):
        self._folder, self._table = folder, table
        self._headers: dict[str, dict[str, tuple[int, int]]] = {}
        self._open: dict[str, Descriptor] = {}

    def read(self, name: str, kind: str, start: int, stop: int) -> Tensor:
        """The values `start` to before `stop`, float32 on the CPU; zeros where a moment was never stored.

        Only these are read from the disk, from any of the files, with retries after transient errors.

        Raises:
            CheckpointError: a file has changed.
            OSError: a file cannot be read.
        """
        values_V = torch.zeros(stop - start)
        for span in self._table.runs(kind, name, start, stop):
            first, last = max(start, span.start), min(stop, span.stop)
            if first < last:
                run = partial(self._read_run, span, first, last, values_V[first - start : last - start])
                retried(run, f"reading {self._folder / span.file}")
        return values_V

    def _read_run(self, span: Span, first: int, last: int, into_V: Tensor) -> None:
        try:
            if span.file not in self._headers:
                self._headers[span.file] = _read_header(self._folder / span.file)
            begin = self._headers[span.file][span.tensor][0] + _VALUE_BYTES * (first - span.start)
        except (ValueError, KeyError) as error:
            raise CheckpointError(f"cannot read {self._folder / span.file}: {error}") from error
        try:
            _read_exactly(self._descriptor(span.file), memoryview(into_V.numpy().data).cast("B"), begin)
        except OSError:
            self._open.pop(span.file, None)  # a stale handle does not recover
            raise

    def _descriptor(self, name: str) -> int:
        """A file held open. Only a few are: a checkpoint may have more files than a process may open."""
        if name not in self._open:
            if len(self._open) >= _MOST_OPEN:
                del self._open[next(iter(self._open))]
            self._open[name] = Descriptor(str(self._folder / name), os.O_RDONLY)
        return self._open[name].number


def _read_exactly(descriptor: int, into: memoryview, offset: int) -> None:
    while into:
        count = os.preadv(descriptor, [into], offset)
        if not count:
            raise OSError(errno.EIO, "the file ends before its header says")
        into, offset = into[count:], offset + count


def _read_header(path: Path) -> dict[str, tuple[int, int]]:
    """Byte offsets of each tensor in the file.

    Raises:
        ValueError: it is not a file of contiguous float32 tensors.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        if length > size - 8:
            raise ValueError(f"{path.name}: its header is longer than the file")
        text = file.read(length)
    found, place = {}, 8 + length
    try:
        for tensor, entry in json.loads(text).items():
            begin, end = (8 + length + offset for offset in entry["data_offsets"])
            if entry["dtype"] != "F32" or begin != place or end - begin != _VALUE_BYTES * entry["shape"][0]:
                raise ValueError(f"{tensor!r}: expected a run of float32 values")
            found[tensor] = (begin, end)
            place = end
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"{path.name}: {error}") from error
    if place != size:
        raise ValueError(f"{path.name}: expected {place} bytes by its header, got {size}")
    return found


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
