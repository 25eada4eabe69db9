"""Local cache of remote data sets: single samples of shards, and copies of indexes.

The cache stores samples or blocks of neighbouring samples, not whole shards. The entry of a shard is a sparse
file in which a sample has the same offset as in the shard. There is no list of samples: a cached sample is
valid if its checksum is correct. A hole, an interrupted write and a bad disk are all misses.

    FOLDER/sets/SET/DIGEST.shard  entry, named by the sha256 of the shard; SET is a digest of the location
    FOLDER/sets/SET/lock   held by the processes that read the data set; others are evicted first
    FOLDER/blocks/DIGEST-BEGIN    block of a full cache, until it is replaced
    FOLDER/locks/NNN       locks of the downloads of blocks
    FOLDER/ledger          upper bound of the bytes of all entries; locked for every change
    FOLDER/indexes/DIGEST/ copy of a remote index; processes that use it hold a shared lock on `lock`
"""

import fcntl
import hashlib
import json
import os
import shutil
import stat
import tempfile
import threading
import time
import weakref
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from kinemae.data_tools.command import DataError, log
from kinemae.data_tools.data_set_files import DATASET_NAME, DataFile, files_of
from kinemae.data_tools.files import Descriptor, flock, read_at, write_at
from kinemae.data_tools.storage.location import Location

_BLOCK = 4096
_FILE_OVERHEAD = 4 * _BLOCK  # block map of a sparse file, which file systems count late
_MAX_OPEN_ENTRIES = 64
_MAX_OPEN_SETS = 1024
_FILL_FRACTION = 0.9  # of the size limit, after eviction
_MAX_FRACTION = 0.1  # of the size limit, for one sample or block
_RESCAN_S = 60.0  # between two searches of a full cache for entries to evict
_LOCKS = 256
_TOUCH_S = 60.0
_MAX_COPIES = 8  # of indexes: the newest stay, and those in use
_INDEX_ATTEMPTS = 6  # while another process publishes both files again
_POLL_S = 0.05
_thread_lock = threading.Lock()  # a file lock excludes other processes only


@dataclass(frozen=True, kw_only=True)
class Cache:
    """A folder of cached samples.

    Attributes:
        folder: on a local disk whose file system supports sparse files.
        size: maximum number of bytes of all samples.
    """

    folder: Path
    size: int

    def check(self) -> "Cache":
        """Create the folder.

        Raises:
            ValueError: the folder cannot be created or written.
        """
        try:
            for name in ("indexes", "sets", "blocks", "locks"):
                (self.folder / name).mkdir(parents=True, exist_ok=True)
            with self._locked():
                pass
        except OSError as error:
            raise ValueError(
                f"data.cache_dir={self.folder} cannot be used ({error.strerror}): name a folder for writing"
            ) from error
        return self

    def entry(self, data_set: str, shard: str) -> "CacheEntry":
        """The cached part of a shard.

        Args:
            data_set: location of the data set.
            shard: sha256 of the shard, or another name of its content.
        """
        return CacheEntry(cache=self, folder=hashlib.sha256(data_set.encode()).hexdigest()[:16], shard=shard)

    def _take_space(self, ledger: int, needed: int, *, limit: int, evict_active: bool = False) -> bool:
        """Count `needed` bytes as used if they fit below `limit`, after the eviction of other entries.

        Args:
            evict_active: whether to evict entries of data sets that are in use, too.
        """
        used, full_s = _read_ledger(ledger)
        if used + needed > limit:
            if not evict_active and time.time() - full_s < _RESCAN_S:
                return False
            used = self._evict(limit - needed, evict_active=evict_active)
            full_s = time.time()
        fits = used + needed <= limit
        # Before the write, so that the count includes bytes of a killed process.
        _write_ledger(ledger, used + needed if fits else used, full_s)
        return fits

    def _evict(self, target: int, *, evict_active: bool) -> int:
        """Empty the least recently used entries, first of unused data sets; return the bytes still in use.

        Entries are truncated, not deleted: a process with an open entry would fill a file without a name.
        """
        entries = []
        for folder in (self.folder / "sets").iterdir():
            is_active = _is_active(folder)
            for path in folder.glob("*.shard"):
                status = path.stat()
                if status.st_blocks:
                    size = status.st_blocks * 512 + _FILE_OVERHEAD
                    entries.append((is_active, status.st_mtime_ns, path, size))
        used = sum(size for *_, size in entries)
        for is_active, _, path, size in sorted(entries):
            goal = target if is_active else target * _FILL_FRACTION
            if used <= goal or (is_active and not evict_active):
                break
            os.truncate(path, 0)
            used -= size
        return used

    @contextmanager
    def _locked(self) -> Iterator[int]:
        with _thread_lock:
            ledger = _ledger(str(self.folder), os.getpid()).number
            fcntl.lockf(ledger, fcntl.LOCK_EX)  # the kernel releases it when the process is killed
            try:
                yield ledger
            finally:
                fcntl.lockf(ledger, fcntl.LOCK_UN)


@dataclass(frozen=True, kw_only=True)
class CacheEntry:
    """The cached samples of one shard of a data set.

    A full cache keeps what it has: each epoch reads all samples once, in a new order, so the sample that was
    used last is not needed earlier than another one. Blocks for which there is no space are kept for the
    window of the order that uses them; they replace each other.
    """

    cache: Cache
    folder: str
    shard: str

    def read(self, offset: int, length: int) -> bytes:
        """Read a range; other bytes than the sample's if the sample is not cached."""
        try:
            entry = self._open()
            entry.touch()
            return read_at(entry.number, offset, length)
        except OSError as error:
            _warn_once(str(self.cache.folder), str(error))
            return b""

    def write(self, offset: int, content: bytes, *, window_bytes: int = 0) -> bool:
        """Store a range if there is space; return whether it was stored.

        Args:
            window_bytes: size of the blocks that are in use, for which space is left.
        """
        needed = (len(content) // _BLOCK + 2) * _BLOCK
        limit = self.cache.size - self._reserved(window_bytes)
        if needed > self.cache.size * _MAX_FRACTION:
            return False
        try:
            entry = self._open()
            with self.cache._locked() as ledger:
                blocks = sum(size for _, _, size in self._blocks()) if not window_bytes else 0
                if not self.cache._take_space(ledger, needed, limit=limit - blocks):
                    return False
                write_at(entry.number, offset, content)
        except OSError as error:
            _warn_once(str(self.cache.folder), str(error))
            return False
        return True

    def has_space_for(self, size: int) -> bool:
        """Check whether the cache is large enough for a block."""
        return size <= self.cache.size * _MAX_FRACTION

    def read_block(self, begin: int, offset: int, length: int) -> bytes:
        """Read a range of a block that begins at `begin`; empty if the block is not stored."""
        try:
            block = Descriptor(str(self._block_path(begin)), os.O_RDONLY)
            return read_at(block.number, offset - begin, length)
        except OSError as error:
            if not isinstance(error, FileNotFoundError):
                _warn_once(str(self.cache.folder), str(error))
            return b""

    def write_block(self, begin: int, content: bytes, *, window_bytes: int) -> None:
        """Store a block: permanently if there is space, else in place of the oldest other block."""
        if self.write(begin, content, window_bytes=window_bytes):
            return
        path, reserved = self._block_path(begin), self._reserved(window_bytes)
        try:
            with self.cache._locked() as ledger:
                blocks = self._blocks()
                held = sum(size for _, _, size in blocks)
                while blocks and held + len(content) > reserved:
                    _, oldest, size = blocks.pop(0)
                    oldest.unlink()
                    held -= size
                limit = self.cache.size - reserved
                if not self.cache._take_space(ledger, 0, limit=limit, evict_active=True):
                    return
                partial = path.with_suffix(".partial")
                partial.write_bytes(content)
                partial.replace(path)
        except OSError as error:
            _warn_once(str(self.cache.folder), str(error))

    @contextmanager
    def downloading(self, begin: int) -> Iterator[None]:
        """Hold the lock of a block, so that one process downloads it and the others wait.

        Without a usable lock file, each process downloads the block.
        """
        name, lock = f"{zlib.crc32(f'{self.shard}/{begin}'.encode()) % _LOCKS:03d}", None
        try:
            lock = _lock_file(self.cache.folder / "locks" / name)
            flock(lock.number, fcntl.LOCK_EX)  # the kernel releases it when the process is killed
        except OSError as error:
            _warn_once(str(self.cache.folder), str(error))
        try:
            yield
        finally:
            if lock is not None:
                flock(lock.number, fcntl.LOCK_UN)

    def _open(self) -> "_Entry":
        _mark_active(str(self._path.parent), os.getpid())
        return _entry(str(self._path), os.getpid())

    @property
    def _path(self) -> Path:
        return self.cache.folder / "sets" / self.folder / f"{self.shard[:40]}.shard"

    def _block_path(self, begin: int) -> Path:
        return self.cache.folder / "blocks" / f"{self.shard[:40]}-{begin}"

    def _reserved(self, window_bytes: int) -> int:
        """Space for two generations of blocks, since both are stored for some time; at most half of all."""
        return min(2 * window_bytes, self.cache.size // 2)

    def _blocks(self) -> list[tuple[int, Path, int]]:
        """Time, path and size of the stored blocks, oldest first."""
        found = []
        for path in (self.cache.folder / "blocks").iterdir():
            status = path.stat()
            found.append((status.st_mtime_ns, path, status.st_blocks * 512))
        return sorted(found)


class _Entry(Descriptor):
    """The open entry of a shard."""

    def __init__(self, path: str):
        super().__init__(path, os.O_RDWR | os.O_CREAT, 0o664)
        self._touched = 0.0

    def touch(self) -> None:
        """Update the time of the last use, at most once a minute."""
        if time.monotonic() - self._touched > _TOUCH_S:
            os.utime(self.number)
            self._touched = time.monotonic()


# Keyed by process: a file lock belongs to a process and ends when that process closes any of its descriptors.
@lru_cache(maxsize=4)
def _ledger(folder: str, _process: int) -> Descriptor:
    return Descriptor(os.path.join(folder, "ledger"), os.O_RDWR | os.O_CREAT, 0o664)


@lru_cache(maxsize=_MAX_OPEN_ENTRIES)
def _entry(path: str, _process: int) -> _Entry:
    return _Entry(path)


@lru_cache(maxsize=_MAX_OPEN_SETS)
def _mark_active(folder: str, _process: int) -> Descriptor:
    """Create the folder of a data set and hold a shared lock while this process uses it."""
    os.makedirs(folder, exist_ok=True)
    lock = _lock_file(Path(folder) / "lock")
    flock(lock.number, fcntl.LOCK_SH)
    return lock


def _lock_file(path: Path) -> Descriptor:
    """Open a file to lock; one of another user only for reading, which a lock of a local file permits."""
    try:
        return Descriptor(str(path), os.O_RDWR | os.O_CREAT, 0o664)
    except PermissionError:
        return Descriptor(str(path), os.O_RDONLY)


def _is_active(folder: Path) -> bool:
    """Check whether a process uses a data set; True on a file system without locks."""
    lock = _lock_file(folder / "lock")
    try:
        return not flock(lock.number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True


@lru_cache(maxsize=4)
def _warn_once(folder: str, reason: str) -> None:
    log.warning("the cache in %s does not work (%s): remote shards are read without it", folder, reason)


def _read_ledger(ledger: int) -> tuple[int, float]:
    """Bytes in use, and when the cache was found full.

    The number is above every limit if it is unknown, so that the entries are counted.
    """
    used, _, full_s = os.pread(ledger, 40, 0).decode(errors="replace").partition(" ")
    return int(used) if used.isdigit() else 1 << 62, float(full_s) if full_s.strip().isdigit() else 0.0


def _write_ledger(ledger: int, used: int, full_s: float) -> None:
    os.pwrite(ledger, b"%020d %018d" % (used, int(full_s)), 0)


@dataclass(frozen=True, kw_only=True)
class LocalIndex:
    """The folder with an index's files on this machine.

    Attributes:
        state: the content of dataset.json when the index was opened; later changes do not matter.
        keep_alive: keeps the folder while the index is in use: the lock of a copy.
    """

    folder: Path
    state: bytes
    cache: Cache | None = None
    keep_alive: Descriptor | None = None

    def for_other_process(self) -> "LocalIndex":
        """The same for another process, which does not keep the folder."""
        return replace(self, keep_alive=None)


def fetch_index(folder: Location, cache: Cache | None) -> LocalIndex:
    """Copy a remote index to the cache, or else to a shared temporary folder; a local index stays.

    Raises:
        StorageError: a file is missing or cannot be read.
        DataError: the files do not match dataset.json, also after retries.
    """
    if cache is not None:
        cache.check()
    for attempt in range(_INDEX_ATTEMPTS):
        state = (folder / DATASET_NAME).read()
        files = named_files(state)
        if folder.path is not None:
            for file in files:
                (folder / file.name).size()
            return LocalIndex(folder=folder.path, state=state, cache=cache)
        root = _shared_temporary_folder() if cache is None else cache.folder
        local = _cached_copy(folder, files, state, root / "indexes", cache)
        wrong = _download(local.folder, folder, files)
        if wrong is None:
            _downgrade_lock(local)
            _remove_old_copies(root / "indexes", 0 if cache is None else _MAX_COPIES)
            return local
        del local  # its lock would make the next attempt wait for this one
        time.sleep(folder.retry_policy.pause_s * 2**attempt)
    assert wrong is not None
    raise DataError(
        f"{folder / wrong.name} is not the file that {DATASET_NAME} describes: its sha256 differs; fix: "
        "publish the files of the index again, or wait until the upload ends"
    )


def named_files(state: bytes) -> list[DataFile]:
    """The files that a dataset.json names; none if it is damaged."""
    try:
        return list(files_of(json.loads(state)).values())
    except (ValueError, KeyError, TypeError, AttributeError):
        return []  # opening the index reports damage


def _cached_copy(
    folder: Location, files: Sequence[DataFile], state: bytes, copies: Path, cache: Cache | None
) -> LocalIndex:
    """Lock the folder of a copy: shared if the copy is complete, else exclusively to fill it.

    The processes of a machine start at the same time, so one of them downloads.
    """
    digest = hashlib.sha256(folder.url.encode() + b"\0" + state).hexdigest()[:40]
    copy = copies / digest
    while True:
        copy.mkdir(exist_ok=True)
        try:
            lock = Descriptor(str(copy / "lock"), os.O_RDWR | os.O_CREAT)
        except FileNotFoundError:  # removed by another process in between
            continue
        may_use = _try_lock(lock, fcntl.LOCK_EX) or (
            _try_lock(lock, fcntl.LOCK_SH) and all((copy / file.name).exists() for file in files)
        )
        if may_use and lock.is_at(copy / "lock"):
            if cache is None:
                weakref.finalize(lock, _remove_at_end, copy, os.getpid())
            return LocalIndex(folder=copy, state=state, cache=cache, keep_alive=lock)
        del lock
        time.sleep(_POLL_S)


def _shared_temporary_folder() -> Path:
    """The folder of copies without `data.cache_dir`; the last process that uses a copy removes it.

    Raises:
        DataError: another user could write to it.
    """
    folder = Path(tempfile.gettempdir()) / f"kinemae-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise DataError(
            f"{folder}: expected a folder that only this user can write, got another; fix: remove it, or set "
            "data.cache_dir or TMPDIR"
        )
    (folder / "indexes").mkdir(exist_ok=True)
    return folder


def _try_lock(lock: Descriptor, operation: int) -> bool:
    try:
        flock(lock.number, operation | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _download(copy: Path, folder: Location, files: Sequence[DataFile]) -> DataFile | None:
    """Download the files into a folder; return one that does not match its sha256."""
    for file in files:
        path = copy / file.name
        if not path.exists():
            new = path.with_name(f"{path.name}.{os.getpid()}.new")
            (folder / file.name).download(new)
            with new.open("rb") as content:
                digest = hashlib.file_digest(content, "sha256").hexdigest()
            if file.sha256 not in ("", digest):
                new.unlink()
                return file
            new.replace(path)
    return None


def _downgrade_lock(local: LocalIndex) -> None:
    """Hold a shared lock while this process uses the copy."""
    assert local.keep_alive is not None
    os.utime(local.keep_alive.number)
    flock(local.keep_alive.number, fcntl.LOCK_SH)


def _remove_old_copies(copies: Path, kept: int) -> None:
    """Remove the copies that no process uses, except those that were opened last."""
    by_age = sorted(copies.iterdir(), key=_opened_ns)
    for copy in by_age[: max(len(by_age) - kept, 0)]:
        _remove_unused(copy)


def _remove_unused(copy: Path) -> None:
    try:
        lock = Descriptor(str(copy / "lock"), os.O_RDWR)
        has_lock = flock(lock.number, fcntl.LOCK_EX | fcntl.LOCK_NB)  # False on a file system without locks
        if has_lock and lock.is_at(copy / "lock"):
            shutil.rmtree(copy, ignore_errors=True)
    except (FileNotFoundError, BlockingIOError):
        pass


def _remove_at_end(copy: Path, process: int) -> None:
    if os.getpid() == process:  # not in a forked child
        _remove_unused(copy)


def _opened_ns(copy: Path) -> int:
    try:
        return (copy / "lock").stat().st_mtime_ns
    except FileNotFoundError:
        return 0
