"""Local copies of remote indexes: verified after download, shared by processes, limited in number.

FOLDER/indexes/DIGEST/    a copy in a cache; processes that use it hold `lock` shared
"""

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from kinemae.data_tools.command import DataError
from kinemae.data_tools.files import Descriptor, flock
from kinemae.data_tools.storage.cache import Cache
from kinemae.data_tools.storage.location import Location, location

_MOST_COPIES = 8  # of which the newest stay, and those in use
_ATTEMPTS = 6  # while another process publishes both files again
_POLL_S = 0.05
_CHECKED = b"\0checked"  # part of the name of a copy whose checksum was compared


@dataclass(frozen=True, kw_only=True)
class LocalIndex:
    """The location of an index's files on this machine.

    Attributes:
        keep_alive: keeps the folder while the index is in use: a temporary folder, or the lock of a copy.
    """

    place: Path
    cache: Cache | None = None
    keep_alive: "tempfile.TemporaryDirectory[str] | Descriptor | None" = None

    def for_other_process(self) -> "LocalIndex":
        """For another process, which must not delete the folder."""
        return replace(self, keep_alive=None)


def fetch_index(folder: Location, names: Sequence[str], cache: Cache | None) -> LocalIndex:
    """Copy an index to this machine unless it is there: into the cache, or else into a temporary folder.

    Args:
        names: first the small file, which holds the sha256 of the second one as `index_sha256`.

    Raises:
        StorageError: one of them is missing or cannot be read.
        DataError: the two files do not match, also after retries.
    """
    if cache is not None:
        cache.check()
    if folder.path is not None:
        for name in names:
            (folder / name).size()
        return LocalIndex(place=folder.path, cache=cache)
    for attempt in range(_ATTEMPTS):
        small = (folder / names[0]).read()
        brought = _temporary() if cache is None else _in_cache(folder, names, small, cache)
        if _complete(brought.place, folder, names, small):
            if cache is not None:
                _share(brought)
                _remove_old(cache)
            return brought
        del brought  # its lock would make the next attempt wait for this one
        time.sleep(folder.retry_policy.pause_s * 2**attempt)
    raise DataError(
        f"{folder / names[1]} is not the file that {names[0]} describes: index_sha256 differs; fix: publish "
        "both files again, or wait until the upload ends"
    )


def _temporary() -> LocalIndex:
    keep_alive = tempfile.TemporaryDirectory(prefix="kinemae-index-")
    return LocalIndex(place=Path(keep_alive.name), keep_alive=keep_alive)


def _in_cache(folder: Location, names: Sequence[str], small: bytes, cache: Cache) -> LocalIndex:
    """The locked folder of a copy: a shared lock if it is complete, else an exclusive one to fill it.

    The processes of a machine start at the same time; one of them copies.
    """
    digest = hashlib.sha256(folder.url.encode() + b"\0" + small + _CHECKED).hexdigest()[:40]
    place = cache.folder / "indexes" / digest
    while True:
        place.mkdir(exist_ok=True)
        try:
            lock = Descriptor(str(place / "lock"), os.O_RDWR | os.O_CREAT)
        except FileNotFoundError:  # removed by another process in between
            continue
        may_use = _try(lock, fcntl.LOCK_EX) or (
            _try(lock, fcntl.LOCK_SH) and all((place / name).exists() for name in names)
        )
        if may_use and _is_at(place / "lock", lock):
            return LocalIndex(place=place, cache=cache, keep_alive=lock)
        del lock
        time.sleep(_POLL_S)


def _try(lock: Descriptor, operation: int) -> bool:
    try:
        flock(lock.number, operation | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_at(path: Path, lock: Descriptor) -> bool:
    try:
        return path.stat().st_ino == os.fstat(lock.number).st_ino
    except FileNotFoundError:
        return False


def _complete(place: Path, folder: Location, names: Sequence[str], small: bytes) -> bool:
    """Download the files into a folder; return whether they match."""
    large = place / names[1]
    if not large.exists():
        new = large.with_name(f"{large.name}.{os.getpid()}.new")
        (folder / names[1]).download(new)
        if not _is_described(new, small):
            new.unlink()
            return False
        new.replace(large)
    if not (place / names[0]).exists():
        location(place / names[0]).write(small)  # atomic: other processes may read it
    return True


def _is_described(file: Path, small: bytes) -> bool:
    try:
        expected = json.loads(small).get("index_sha256", "")
    except (ValueError, AttributeError):
        return True  # opening the index reports damage
    with file.open("rb") as content:
        return not expected or hashlib.file_digest(content, "sha256").hexdigest() == expected


def _share(brought: LocalIndex) -> None:
    """Downgrade to a shared lock, held while this process uses the copy."""
    assert isinstance(brought.keep_alive, Descriptor)
    os.utime(brought.keep_alive.number)
    flock(brought.keep_alive.number, fcntl.LOCK_SH)


def _remove_old(cache: Cache) -> None:
    """Remove the copies that were opened longest ago and that no process uses."""
    copies = sorted((cache.folder / "indexes").iterdir(), key=_opened_ns)
    for copy in copies[:-_MOST_COPIES]:
        try:
            lock = Descriptor(str(copy / "lock"), os.O_RDWR)
            if flock(lock.number, fcntl.LOCK_EX | fcntl.LOCK_NB):  # not where there are no locks
                shutil.rmtree(copy, ignore_errors=True)
        except (FileNotFoundError, BlockingIOError):
            continue


def _opened_ns(copy: Path) -> int:
    try:
        return (copy / "lock").stat().st_mtime_ns
    except FileNotFoundError:
        return 0
