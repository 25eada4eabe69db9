"""What was read from remote shards, kept on this machine within a bound, for all processes together.

Training reads one sample here and one there, all over the data set. To keep whole shards, or large blocks,
would fetch many times what is used, so what is kept is exactly what was read: a shard's entry is a file with
holes, in which a sample lies at the same bytes as in the shard. No list says which samples are there: one is
there when its checksum fits. A hole, a write that was killed half way and a bad disk all are misses.

    FOLDER/DIGEST.shard    an entry, by the sha256 of the shard
    FOLDER/ledger          bytes in use, an upper bound; who changes anything holds its lock
    FOLDER/indexes/        copies of remote indexes, not counted; see `index_copies`
"""

import fcntl
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from kinemae.data_tools.command import log
from kinemae.data_tools.files import Descriptor, read_at, write_at

_BLOCK = 4096
_MAP = 4 * _BLOCK  # where the data of a file with holes lies; file systems count it late
_OPEN_ENTRIES = 64
_KEPT_SHARE = 0.9  # of the bound, after making room
_TOUCH_S = 60.0
_thread_lock = threading.Lock()  # the file's lock holds off other processes alone


@dataclass(frozen=True, kw_only=True)
class Cache:
    """A folder that keeps samples of remote shards.

    Attributes:
        folder: on a disk of this machine that can hold files with holes, as all usual ones can.
        size: the most bytes that samples may take in it.
    """

    folder: Path
    size: int

    def check(self) -> "Cache":
        """Make the folder.

        Raises:
            ValueError: it cannot be made or written.
        """
        try:
            (self.folder / "indexes").mkdir(parents=True, exist_ok=True)
            with self._locked():
                pass
        except OSError as error:
            raise ValueError(
                f"data.cache_dir={self.folder} cannot be used ({error.strerror}): name a folder for writing"
            ) from error
        return self

    def read(self, digest: str, offset: int, length: int) -> bytes:
        """What lies at these bytes of a shard's entry: the sample, or anything else."""
        try:
            entry = _entry(str(self._path(digest)), os.getpid())
            entry.touch()
            return read_at(entry.number, offset, length)
        except OSError as error:
            _warn_once(str(self.folder), str(error))
            return b""

    def keep(self, digest: str, offset: int, video: bytes) -> None:
        """Remember a sample's bytes; others are forgotten where there is no room."""
        room = (len(video) // _BLOCK + 2) * _BLOCK
        if room > self.size * (1 - _KEPT_SHARE):
            return
        try:
            entry = _entry(str(self._path(digest)), os.getpid())
            with self._locked() as ledger:
                used = _used(ledger)
                if used + room > self.size:
                    used = self._make_room(room)
                os.pwrite(ledger, b"%020d" % (used + room), 0)  # first: a killed process must not hide bytes
                write_at(entry.number, offset, video)
        except OSError as error:
            _warn_once(str(self.folder), str(error))

    def _make_room(self, room: int) -> int:
        """Empty the entries that were used longest ago; returns the bytes still in use.

        An entry is emptied and not deleted: whoever has it open would go on filling a file without a name.
        """
        entries = []
        for path in self.folder.glob("*.shard"):
            found = path.stat()
            if found.st_blocks:
                entries.append((found.st_mtime_ns, path, found.st_blocks * 512 + _MAP))
        used = sum(size for _, _, size in entries)
        for _, path, size in sorted(entries):
            if used + room <= self.size * _KEPT_SHARE:
                break
            os.truncate(path, 0)
            used -= size
        return used

    def _path(self, digest: str) -> Path:
        return self.folder / f"{digest[:40]}.shard"

    @contextmanager
    def _locked(self) -> Iterator[int]:
        with _thread_lock:
            ledger = _ledger(str(self.folder), os.getpid()).number
            fcntl.lockf(ledger, fcntl.LOCK_EX)  # the kernel lets go of it when a process is killed
            try:
                yield ledger
            finally:
                fcntl.lockf(ledger, fcntl.LOCK_UN)


class _Entry:
    """A shard's entry, held open."""

    def __init__(self, path: str):
        self._file = _opened(path)
        self.number = self._file.number
        self._touched = 0.0

    def touch(self) -> None:
        """Say that it is in use, now and then."""
        if time.monotonic() - self._touched > _TOUCH_S:
            os.utime(self.number)
            self._touched = time.monotonic()


def _opened(path: str) -> Descriptor:
    return Descriptor(path, os.O_RDWR | os.O_CREAT, 0o664)


# By process: a lock belongs to the process that opened the file and ends when it closes any descriptor of it.
@lru_cache(maxsize=4)
def _ledger(folder: str, _process: int) -> Descriptor:
    return _opened(os.path.join(folder, "ledger"))


@lru_cache(maxsize=_OPEN_ENTRIES)
def _entry(path: str, _process: int) -> _Entry:
    return _Entry(path)


@lru_cache(maxsize=4)
def _warn_once(folder: str, reason: str) -> None:
    log.warning("the cache in %s does not work (%s): remote shards are read without it", folder, reason)


def _used(ledger: int) -> int:
    """Bytes in use; more than any bound where that is not known, so that they are counted."""
    noted = os.pread(ledger, 20, 0)
    return int(noted) if noted.isdigit() else 1 << 62
