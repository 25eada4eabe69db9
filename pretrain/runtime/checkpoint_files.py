"""The files of a checkpoint: layout, writing, reading, and removal.

step-00001000/shard-00000-of-00004.safetensors    weights and moments, one file for each writing process
step-00001000/parameters.json    shape and number of updates of every parameter
step-00001000/state.json         the run state that is not a function of the step
step-00001000/manifest.json      size and checksum of every file; written last
step-00002000.ATTEMPT.partial/   a save in progress, or an interrupted one
step-00000500.dropped/           about to be removed
step-00001000.replaced/          saved again; gets its name back if that save was interrupted
step-00003000.quarantined/       damaged and skipped at a start; nothing removes it

Shard files hold flat float32 tensors named `KIND/NAME@START`, for example
`exp_avg/encoder.blocks.0.norm1.weight@128`. The safetensors library reads them: a length, a JSON header, raw
bytes. They are written without it, a block at a time, so that the checksum needs no other copy. They are read
in the same way, not by mapping: an error of the file system raises `OSError` instead of killing the process.
"""

import errno
import io
import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from kinemae.data_tools.command import CheckpointError, log
from kinemae.data_tools.files import fsync_path, names_in
from kinemae.data_tools.storage.location import Location
from kinemae.pretrain.runtime.file_retries import retry
from kinemae.pretrain.runtime.tensor_shards import ShardRange

FORMAT = 1

_MOST_NAMED = 5
_PARTIAL, _DROPPED, _REPLACED, _QUARANTINED = ".partial", ".dropped", ".replaced", ".quarantined"
_SHARD = "shard-"
MANIFEST, _STATE, _PARAMETERS = "manifest.json", "state.json", "parameters.json"
_VALUE_BYTES = 4
_ALIGNMENT = 64
_BLOCK_VALUES = 1 << 20


# A checkpoint, or one of its files: on a disk or in an object store.
Place = Path | Location
# Returns the size of a file, and the file opened at its beginning.
OpenFile = Callable[[Place], tuple[int, io.RawIOBase]]


class FileChecksum(NamedTuple):
    """Size in bytes and CRC-32 of a file."""

    size: int
    crc32: int

    @classmethod
    def of(cls, content: bytes) -> "FileChecksum":
        """The checksum of a file with this content."""
        return cls(len(content), zlib.crc32(content))


@dataclass(frozen=True, kw_only=True)
class CheckpointMetadata:
    """Content of the JSON files of a checkpoint.

    Attributes:
        state: state of the run, see `RunState`.
        shapes: of every parameter and buffer.
        updates: number of updates of every trainable parameter.
        files: checksum of every file but the manifest.
    """

    state: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]
    updates: dict[str, int]
    files: dict[str, FileChecksum]


def checkpoint_folder(checkpoints: Path, step: int) -> Path:
    """The folder of a complete checkpoint."""
    return checkpoints / f"step-{step:08d}"


def partial_folder(checkpoints: Path, step: int, attempt: str) -> Path:
    """The folder in which a save is written.

    Args:
        attempt: identifies the start of the run. A suspended process of an earlier start may resume; it must
            not write to the files of this start.
    """
    return checkpoints / f"step-{step:08d}.{attempt}{_PARTIAL}"


def shard_file(rank: int, world: int) -> str:
    """The name of one process's file."""
    return f"{_SHARD}{rank:05d}-of-{world:05d}.safetensors"


def is_shard_file(name: str) -> bool:
    """Check whether a file name is that of a shard file."""
    return name.startswith(_SHARD)


def parse_shard_file(name: str) -> tuple[int, int]:
    """Rank and number of files in the name of a shard file."""
    number, _, files = name.removeprefix(_SHARD).removesuffix(".safetensors").partition("-of-")
    return int(number), int(files)


def write_shards(path: Path, ranges: Sequence[ShardRange], values: Iterable[Tensor]) -> FileChecksum:
    """Write the values of `ranges` in their order, and wait until they are on the disk.

    Other threads run meanwhile: the interpreter's lock is released for each block.

    Args:
        values: flat float32 tensors on any device, cut anywhere.

    Raises:
        OSError: for example on a full disk.
    """
    size = checksum = 0
    with path.open("wb") as file:
        for block in file_bytes(ranges, values):
            checksum = zlib.crc32(block, checksum)
            size += len(block)
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
    return FileChecksum(size, checksum)


def file_bytes(ranges: Sequence[ShardRange], values: Iterable[Tensor]) -> Iterator[memoryview | bytes]:
    """The content of a shard file, in blocks."""
    place, entries = 0, {}
    for one in ranges:
        count = one.stop - one.start
        end = place + _VALUE_BYTES * count
        entries[one.tensor] = {"dtype": "F32", "shape": [count], "data_offsets": [place, end]}
        place = end
    text = json.dumps(entries).encode()
    text += b" " * (-(8 + len(text)) % _ALIGNMENT)  # aligns the values in a mapped file
    yield len(text).to_bytes(8, "little") + text
    for run_V in values:
        for block_V in run_V.split(_BLOCK_VALUES):
            yield memoryview(block_V.cpu().numpy().data).cast("B")


class ShardStream:
    """A shard file that is read once, from its beginning to its end.

    Reads are repeated after transient errors. The checksum is computed on the way.

    Attributes:
        ranges: the content of the file, in its order.

    Raises:
        ValueError: the file has changed since it was written.
        OSError: it cannot be read.
    """

    def __init__(self, path: Place, expected: FileChecksum, open_file: OpenFile | None = None):
        self._path, self._expected, self._open = path, expected, open_file or open_local
        self._file: io.RawIOBase | None = None
        self._offset = self._crc32 = 0
        length = int.from_bytes(self._next(8), "little") if expected.size >= 8 else expected.size
        if length > expected.size - 8:
            raise ValueError(f"{path.name} has changed since it was written: its header is too long")
        try:
            self.ranges = _parse_header(path.name, self._next(length), expected.size - 8 - length)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise ValueError(f"{path.name} has changed since it was written: {error}") from error

    def read_into(self, values_V: Tensor) -> None:
        """Read the next values; float32 on the CPU."""
        self._fill(memoryview(values_V.numpy().data).cast("B"))

    def check_end(self) -> None:
        """Compare the checksum, after all values are read."""
        if (self._offset, self._crc32) != self._expected:
            raise ValueError(f"{self._path.name} has changed since it was written")

    def close(self) -> None:
        """Close the file until the next read."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _next(self, length: int) -> bytes:
        content = bytearray(length)
        self._fill(memoryview(content))
        return bytes(content)

    def _fill(self, into: memoryview) -> None:
        start = self._offset
        retry(partial(self._read_at, into, start), f"reading {self._path}")
        self._offset = start + len(into)
        self._crc32 = zlib.crc32(into, self._crc32)

    def _read_at(self, into: memoryview, offset: int) -> None:
        try:
            if self._file is None:
                size, self._file = self._open(self._path)
                if size != self._expected.size:
                    raise ValueError(f"{self._path.name} has changed since it was written")
                _skip(self._file, offset)
            elif self._file.seekable():  # an attempt may have failed after a part
                self._file.seek(offset)
            while into:
                count = self._file.readinto(into)
                if not count:
                    raise OSError(errno.EIO, "the file is shorter than at its opening")
                into = into[count:]
        except OSError:
            self.close()  # a stale handle does not recover
            raise


def open_local(path: Place) -> tuple[int, io.RawIOBase]:
    """Size of a file of this machine, and the open file."""
    file = Path(str(path)).open("rb", buffering=0)  # noqa: SIM115 - the caller closes it
    return os.fstat(file.fileno()).st_size, file


def _skip(file: io.RawIOBase, offset: int) -> None:
    """Move to an offset of a file just opened."""
    if file.seekable():
        file.seek(offset)
    while not file.seekable() and offset:
        offset -= len(file.read(min(offset, _BLOCK_VALUES)) or b"")


def _parse_header(file: str, text: bytes, size: int) -> list[ShardRange]:
    """The ranges in a file of contiguous float32 tensors.

    Args:
        size: bytes of all values.
    """
    found, place = [], 0
    for tensor, entry in json.loads(text).items():
        kind, _, position = tensor.partition("/")
        name, _, start = position.rpartition("@")
        if not name or not start.isdigit():
            raise ValueError(f"expected a tensor named KIND/NAME@START, got {tensor!r}")
        begin, end = entry["data_offsets"]
        count = entry["shape"][0]
        if entry["dtype"] != "F32" or count < 0 or (begin, end) != (place, place + _VALUE_BYTES * count):
            raise ValueError(f"{tensor!r}: expected contiguous float32 values")
        found.append(ShardRange(file, kind, name, int(start), int(start) + count))
        place = end
    if place != size:
        raise ValueError(f"expected {place} bytes of values by its header, got {size}")
    return found


def list_checkpoints(checkpoints: Path) -> dict[int, Path]:
    """Complete checkpoints by step, oldest first. They may be damaged.

    Raises:
        OSError: the folder exists but cannot be read.
    """
    found = {}
    for path in _entries(checkpoints):
        number = path.name.removeprefix("step-")
        if path.name.startswith("step-") and number.isdigit():
            found[int(number)] = path
    return dict(sorted(found.items()))


def _entries(checkpoints: Path, *endings: str) -> list[Path]:
    """List the folder."""
    names = sorted(names_in(checkpoints))
    return [checkpoints / name for name in names if not endings or name.endswith(endings)]


def remove_leftovers(checkpoints: Path) -> None:
    """Remove interrupted saves and dropped checkpoints; restore a checkpoint whose replacement is missing.

    Raises:
        OSError: they cannot be removed.
    """
    for path in _entries(checkpoints, _REPLACED):
        final = path.with_name(path.name.removesuffix(_REPLACED))
        if final.exists():
            drop(path)
        else:
            path.rename(final)
    for path in _entries(checkpoints, _PARTIAL, _DROPPED):
        with suppress(FileNotFoundError):  # removed by another process meanwhile
            shutil.rmtree(path)


def quarantine(checkpoint: Path) -> None:
    """Rename a checkpoint so that no start loads it; nothing removes it.

    Raises:
        OSError: it cannot be renamed.
    """
    place, count = checkpoint.with_name(f"{checkpoint.name}{_QUARANTINED}"), 1
    while place.exists():
        count += 1
        place = checkpoint.with_name(f"{checkpoint.name}.{count}{_QUARANTINED}")
    checkpoint.rename(place)
    log.warning("%s is kept as %s: remove it when it is no longer needed", checkpoint.name, place)


def drop(checkpoint: Path) -> None:
    """Invalidate a checkpoint atomically by a rename; `remove_dropped` deletes the files.

    Raises:
        OSError: it cannot be renamed.
    """
    dropped = checkpoint.with_name(f"{checkpoint.name}{_DROPPED}")
    shutil.rmtree(dropped, ignore_errors=True)  # an earlier checkpoint of the same step
    checkpoint.rename(dropped)


def remove_dropped(checkpoints: Path, attempt: str) -> None:
    """Remove dropped checkpoints and saves of other attempts; log a warning on failure."""
    try:
        for path in _entries(checkpoints, _DROPPED, _PARTIAL):
            if not path.name.endswith(f".{attempt}{_PARTIAL}"):
                shutil.rmtree(path)
    except OSError as error:
        log.warning("could not remove old checkpoints in %s: %s", checkpoints, error)


def commit(partial: Path, final: Path, metadata: CheckpointMetadata, *, replaces: bool = False) -> None:
    """Turn a folder whose shards are on the disk into a checkpoint, atomically.

    Args:
        replaces: whether a checkpoint of this name is dropped; otherwise it is quarantined.

    Raises:
        OSError: it could not be written; a checkpoint of this name is intact.
    """
    replaced = final.with_name(f"{final.name}{_REPLACED}")
    if partial.exists() or not _has_files(final, metadata):  # an earlier attempt may have failed at the end
        check_sizes(partial, metadata, {name: (partial / name).stat().st_size for name in metadata.files})
        for name, text in json_files(metadata).items():
            (partial / name).write_bytes(text)
            fsync_path(partial / name)
        fsync_path(partial)
        if final.exists() and replaces:
            final.rename(replaced)
        elif final.exists():  # of another run: this run renames its own
            quarantine(final)
        partial.rename(final)
    fsync_path(final.parent)
    if replaced.exists():
        drop(replaced)


def _has_files(final: Path, metadata: CheckpointMetadata) -> bool:
    try:
        return metadata.files.items() <= read_metadata(final).files.items()
    except (OSError, ValueError):
        return False


def check_sizes(folder: Place, metadata: CheckpointMetadata, sizes: Mapping[str, int | None]) -> None:
    """Compare the sizes of written files with what their processes reported.

    Raises:
        OSError: they differ.
    """
    for name, checksum in metadata.files.items():
        if sizes.get(name) != checksum.size:
            raise OSError(
                errno.EIO, f"expected {checksum.size} bytes, got {sizes.get(name)}: {folder / name}"
            )


def json_files(metadata: CheckpointMetadata) -> dict[str, bytes]:
    """Names and contents of the JSON files, in the order of writing: the manifest is the last."""
    parameters = {
        name: {"shape": list(shape), "updates": metadata.updates.get(name)}
        for name, shape in metadata.shapes.items()
    }
    texts = {_STATE: _to_json(metadata.state), _PARAMETERS: _to_json(parameters)}
    checksums = {**metadata.files, **{name: FileChecksum.of(text) for name, text in texts.items()}}
    head = {"format": FORMAT, **{key: metadata.state[key] for key in ("step", "world", "zero_stage")}}
    entries = {name: {"bytes": one.size, "crc32": one.crc32} for name, one in sorted(checksums.items())}
    return {**texts, MANIFEST: _to_json({**head, "files": entries})}


def _to_json(content: Any) -> bytes:
    return json.dumps(content, indent=1).encode()


def read_metadata(folder: Place, read: Callable[[Any], bytes] = Path.read_bytes) -> CheckpointMetadata:
    """Read the JSON files of a checkpoint.

    Args:
        read: returns the content of a file.

    Raises:
        CheckpointError: it has another format.
        ValueError: it is damaged.
        OSError: it cannot be read.
    """
    try:
        manifest = json.loads(read(folder / MANIFEST))
        if manifest["format"] != FORMAT:
            raise CheckpointError(
                f"{folder}: expected checkpoint format {FORMAT}, got {manifest['format']!r}; fix: continue "
                "the run with the version that its environment.json names"
            )
        listed = {
            name: FileChecksum(entry["bytes"], entry["crc32"]) for name, entry in manifest["files"].items()
        }
        state, parameters = (
            _from_json(name, read(folder / name), listed[name]) for name in (_STATE, _PARAMETERS)
        )
        return CheckpointMetadata(
            state=state,
            shapes={name: tuple(entry["shape"]) for name, entry in parameters.items()},
            updates={
                name: entry["updates"] for name, entry in parameters.items() if entry["updates"] is not None
            },
            files=listed,
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error


def _from_json(name: str, content: bytes, expected: FileChecksum) -> Any:
    if FileChecksum.of(content) != expected:
        raise ValueError(f"{name} has changed since it was written")
    return json.loads(content)


def is_listed(folder: Path, name: str) -> bool:
    """Check whether a folder lists a file. Network file systems cache missing files for a while."""
    try:
        return name in os.listdir(folder)
    except OSError:
        return False


def check_shapes(
    folder: Place, stored: Mapping[str, tuple[int, ...]], model: Mapping[str, tuple[int, ...]]
) -> None:
    """Compare the shapes of all parameters and buffers of a checkpoint with the model's.

    Raises:
        CheckpointError: they differ.
    """
    differences = [
        f"{name}: checkpoint {_shape(stored.get(name))}, model {_shape(model.get(name))}"
        for name in sorted(stored.keys() | model.keys())
        if stored.get(name) != model.get(name)
    ]
    if differences:
        more = len(differences) - _MOST_NAMED
        tail = f", and {more} more" if more > 0 else ""
        raise CheckpointError(
            f"{folder}: expected a checkpoint of this model, got other shapes "
            f"({'; '.join(differences[:_MOST_NAMED])}{tail}); fix: continue the run with the code and config "
            "that wrote it, or choose another run_dir"
        )


def _shape(shape: tuple[int, ...] | None) -> str:
    return "none" if shape is None else "x".join(map(str, shape)) or "scalar"
