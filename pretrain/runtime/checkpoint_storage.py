"""The place of a run's checkpoints: the run folder, or a prefix of an S3 bucket (`save_to`).

Both keep a checkpoint complete or absent. A folder of files gets its final name at the end. S3 has no rename:

s3://bucket/prefix/step-00001000.ATTEMPT-2/    the files of `checkpoint_files.py`
    manifest.json    written last: without it the checkpoint does not exist
    quarantined      written to a damaged checkpoint: no start loads it, and nothing removes it

Errors of S3 become `OSError`s, so that `file_retries.py` decides on them: an outage is transient (exit code
5), a missing permission is permanent (exit code 4).
"""

import errno
import io
import re
import shutil
import tempfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from torch import Tensor

from kinemae.data_tools.command import CheckpointError, log
from kinemae.data_tools.files import replaced_file
from kinemae.data_tools.storage.location import Location, StorageError, StorageUnavailable, location
from kinemae.data_tools.storage.sequential_file import SequentialFile
from kinemae.pretrain.runtime import checkpoint_files as files
from kinemae.pretrain.runtime.checkpoint_files import (
    MANIFEST,
    CheckpointMetadata,
    FileChecksum,
    Place,
    ShardStream,
)
from kinemae.pretrain.runtime.tensor_shards import ShardRange

_QUARANTINED = "quarantined"
RUN_FILES = ("config.yaml", "inputs.json")


class CheckpointStorage(ABC):
    """Writes, lists, reads and removes the checkpoints of one run. Every method may raise `OSError`.

    Attributes:
        place: the folder of all checkpoints.
    """

    place: Place

    @abstractmethod
    def begin(self, step: int, attempt: str, number: int) -> Place:
        """The place of a save that begins.

        Args:
            attempt: identifies the start of the run. A suspended process of an earlier start may resume; it
                must not write to the files of this start.
            number: of the save in this start.
        """

    @abstractmethod
    def write(self, file: Place, ranges: Sequence[ShardRange], values: Iterable[Tensor]) -> FileChecksum:
        """Write a shard file; see `checkpoint_files.write_shards`."""

    @abstractmethod
    def commit(self, save: Place, step: int, metadata: CheckpointMetadata, *, replaces: bool) -> None:
        """Complete a save whose shard files are written.

        Args:
            replaces: whether a checkpoint of the same step is dropped; otherwise it is of another run, and is
                quarantined.
        """

    @abstractmethod
    def discard(self, save: Place) -> None:
        """Remove the files of a failed save, unless it is complete."""

    @abstractmethod
    def complete(self) -> dict[int, Any]:
        """Complete checkpoints by step, oldest first. They may be damaged."""

    @abstractmethod
    def drop(self, checkpoint: Any) -> None:
        """Invalidate a checkpoint atomically; `remove_dropped` deletes its files."""

    @abstractmethod
    def quarantine(self, checkpoint: Any) -> None:
        """Mark a checkpoint so that no start loads it; nothing removes it."""

    @abstractmethod
    def remove_leftovers(self) -> None:
        """Remove interrupted saves and dropped checkpoints, at a start."""

    @abstractmethod
    def remove_dropped(self, attempt: str, save: Place) -> None:
        """Remove the same during a run, except for its unfinished saves; log a warning on failure."""

    @abstractmethod
    def read_metadata(self, checkpoint: Any) -> CheckpointMetadata:
        """See `checkpoint_files.read_metadata`."""

    @abstractmethod
    def open_shards(self, file: Any, expected: FileChecksum) -> ShardStream:
        """Open a shard file and read its header."""

    @abstractmethod
    def is_listed(self, checkpoint: Any, name: str) -> bool:
        """Check whether a checkpoint has a file; False after an error."""


class FolderStorage(CheckpointStorage):
    """Checkpoints in a folder that all processes share."""

    def __init__(self, place: Path):
        self.place: Path = place

    def begin(self, step: int, attempt: str, number: int) -> Path:
        return files.partial_folder(self.place, step, attempt)

    def write(self, file: Place, ranges: Sequence[ShardRange], values: Iterable[Tensor]) -> FileChecksum:
        path = Path(str(file))
        path.parent.mkdir(parents=True, exist_ok=True)
        return files.write_shards(path, ranges, values)

    def commit(self, save: Place, step: int, metadata: CheckpointMetadata, *, replaces: bool) -> None:
        final = files.checkpoint_folder(self.place, step)
        files.commit(Path(str(save)), final, metadata, replaces=replaces)

    def discard(self, save: Place) -> None:
        shutil.rmtree(str(save), ignore_errors=True)

    def complete(self) -> dict[int, Path]:
        return files.list_checkpoints(self.place)

    def drop(self, checkpoint: Path) -> None:
        files.drop(checkpoint)

    def quarantine(self, checkpoint: Path) -> None:
        files.quarantine(checkpoint)

    def remove_leftovers(self) -> None:
        files.remove_leftovers(self.place)

    def remove_dropped(self, attempt: str, save: Place) -> None:
        files.remove_dropped(self.place, attempt)

    def read_metadata(self, checkpoint: Path) -> CheckpointMetadata:
        return files.read_metadata(checkpoint)

    def open_shards(self, file: Path, expected: FileChecksum) -> ShardStream:
        return ShardStream(file, expected)

    def is_listed(self, checkpoint: Path, name: str) -> bool:
        return files.is_listed(checkpoint, name)


class ObjectStorage(CheckpointStorage):
    """Checkpoints in S3."""

    def __init__(self, place: Location):
        self.place: Location = place

    def begin(self, step: int, attempt: str, number: int) -> Location:
        return self.place / f"{files.checkpoint_folder(Path(), step)}.{attempt}-{number}"

    def write(self, file: Any, ranges: Sequence[ShardRange], values: Iterable[Tensor]) -> FileChecksum:
        size = checksum = 0

        def blocks() -> Iterator[bytes | memoryview]:
            nonlocal size, checksum
            for block in files.file_bytes(ranges, values):
                checksum, size = zlib.crc32(block, checksum), size + len(block)
                yield block

        with os_errors(file):
            file.write_chunks(blocks(), size=4 * sum(one.stop - one.start for one in ranges))
        return FileChecksum(size, checksum)

    def commit(self, save: Any, step: int, metadata: CheckpointMetadata, *, replaces: bool) -> None:
        with os_errors(save):
            files.check_sizes(save, metadata, save.list_sizes())
            for name, text in files.json_files(metadata).items():
                (save / name).write(text)
            others = [one for one in self._complete_names() if _step_of(one) == step and one != save.name]
        for other in others:
            (self.drop if replaces else self.quarantine)(self.place / other)

    def discard(self, save: Any) -> None:
        with suppress(StorageError):
            if MANIFEST not in save.list_sizes():  # else only the removal of older ones failed
                _remove(save)

    def complete(self) -> dict[int, Location]:
        with os_errors(self.place):
            return {_step_of(name): self.place / name for name in sorted(self._complete_names())}

    def drop(self, checkpoint: Location) -> None:
        with os_errors(checkpoint):
            (checkpoint / MANIFEST).remove()

    def quarantine(self, checkpoint: Location) -> None:
        with os_errors(checkpoint):
            (checkpoint / _QUARANTINED).write(b"")
        log.warning("%s is quarantined: remove it when it is no longer needed", checkpoint)

    def remove_leftovers(self) -> None:
        with os_errors(self.place):
            self._remove_incomplete()
        try:
            self.place.abort_uploads()
        except StorageError as error:  # invisible, and some stores do not list them
            log.warning("could not remove unfinished uploads of earlier starts: %s", error)

    def remove_dropped(self, attempt: str, save: Place) -> None:
        try:
            self._remove_incomplete(attempt, _parts_of(save.name)[2])
        except StorageError as error:
            log.warning("could not remove old checkpoints in %s: %s", self.place, error)

    def read_metadata(self, checkpoint: Location) -> CheckpointMetadata:
        with os_errors(checkpoint):
            return files.read_metadata(checkpoint, read=_read)

    def open_shards(self, file: Location, expected: FileChecksum) -> ShardStream:
        return ShardStream(file, expected, _open)

    def is_listed(self, checkpoint: Location, name: str) -> bool:
        try:
            return name in checkpoint.list_sizes()
        except StorageError:
            return False

    def _saves(self) -> dict[str, set[str]]:
        """Names of all saves, complete or not, with the names of their files."""
        names = [name for name in self.place.list() if _step_of(name) >= 0]
        return {name: set((self.place / name).list_sizes()) for name in names}

    def _complete_names(self) -> list[str]:
        saves = self._saves().items()
        return [name for name, found in saves if MANIFEST in found and _QUARANTINED not in found]

    def _remove_incomplete(self, attempt: str = "", number: int = 0) -> None:
        """Remove incomplete saves, except for those of an attempt that begin after its save `number`."""
        for name, found in self._saves().items():
            _, of, count = _parts_of(name)
            is_later = of == attempt and count > number
            if MANIFEST not in found and _QUARANTINED not in found and not is_later:
                _remove(self.place / name)


class RunInStore:
    """The config and the inputs of a run beside its checkpoints in S3.

    A start with an empty run folder, on another machine, continues the run; another run is refused.

    Raises:
        CheckpointError: the store cannot be used.
        StorageUnavailable: the store does not answer.
    """

    def __init__(self, save_to: str):
        self._place = location(save_to)

    def exists(self) -> bool:
        """Check whether the place holds a run."""
        with _named_errors(self._place):
            return (self._place / RUN_FILES[0]).exists()

    @contextmanager
    def copied(self) -> Iterator[Path]:
        """The files in a temporary folder."""
        with tempfile.TemporaryDirectory() as folder:
            self.restore(Path(folder))
            yield Path(folder)

    def restore(self, run_dir: Path) -> None:
        """Copy the files to a folder that lacks them."""
        run_dir.mkdir(parents=True, exist_ok=True)
        with _named_errors(self._place):
            for name in RUN_FILES:
                if (self._place / name).exists():
                    content = (self._place / name).read()
                    with replaced_file(run_dir / name) as partial:  # whose name a later start ignores
                        partial.write_bytes(content)

    def write(self, run_dir: Path) -> None:
        """Copy the files of a run folder, which shows before the first step that the place can be written."""
        with _named_errors(self._place):
            for name in reversed(RUN_FILES):
                if (run_dir / name).exists():
                    (self._place / name).write((run_dir / name).read_bytes())


@contextmanager
def _named_errors(place: Location) -> Iterator[None]:
    try:
        yield
    except StorageUnavailable:
        raise
    except StorageError as error:
        raise CheckpointError(f"save_to={place}: {error}") from error


def storage_of(run_dir: Path, save_to: str | None) -> CheckpointStorage:
    """The place of the checkpoints of a run."""
    return FolderStorage(run_dir / "checkpoints") if save_to is None else ObjectStorage(location(save_to))


def _parts_of(name: str) -> tuple[int, str, int]:
    """Step, attempt and number in the name of a save; step -1 for other names."""
    match = re.fullmatch(r"step-(\d+)\.(\w+)-(\d+)", name)
    return (int(match[1]), match[2], int(match[3])) if match else (-1, "", 0)


def _step_of(name: str) -> int:
    return _parts_of(name)[0]


def _remove(save: Location) -> None:
    for name in save.list():
        (save / name).remove()


def _read(file: Location) -> bytes:
    with os_errors(file):
        return file.read()


def _open(file: Any) -> tuple[int, io.RawIOBase]:
    with os_errors(file):
        return file.size(), _Stream(file)


class _Stream(SequentialFile):
    """An object that is read once, with errors as `OSError`s."""

    def __init__(self, place: Location):
        super().__init__(place)
        self._place = place

    def readinto(self, buffer: Any) -> int:
        with os_errors(self._place):
            return super().readinto(buffer)


@contextmanager
def os_errors(place: Location) -> Iterator[None]:
    """Convert the errors of a storage; see the top of this file."""
    try:
        yield
    except StorageUnavailable as error:
        raise OSError(str(error)) from error
    except StorageError as error:
        if error.is_missing:
            raise FileNotFoundError(errno.ENOENT, str(error), str(place)) from error
        raise PermissionError(errno.EACCES, str(error)) from error
