"""Files and folders on this machine, in object stores and on web servers, behind one small value.

    folder = location("s3://bucket/shards/train")
    (folder / "shard-000000.tar").read(512, 10_000)

A `Location` holds no connection, so it can be pickled, hashed and used after a fork.
"""

import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from kinemae.data_tools import heartbeat
from kinemae.data_tools.files import fsync_path, open_regular, replaced_file
from kinemae.data_tools.storage import remote
from kinemae.data_tools.storage.retries import (
    DEFAULT_RETRY_POLICY,
    RetryPolicy,
    StorageError,
    StorageUnavailable,
    mask_secrets,
    raise_if_outage,
)

__all__ = [
    "DEFAULT_RETRY_POLICY", "SCHEMES", "Location", "RetryPolicy", "StorageError", "StorageUnavailable",
    "location",
]  # fmt: skip

Result = TypeVar("Result")

SCHEMES = ("file", "s3", "gs", "http", "https", "hf")
_WEB = ("http", "https")
_READ_ONLY = (*_WEB, "hf")
_CHUNK = 16 << 20
# `pipe:` starts a program, and chains such as simplecache::s3://... hide the scheme that is used.
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.:-]*)://|(pipe|data|file|s3|gs|https?|hf|ftp):", re.IGNORECASE)


@dataclass(frozen=True)
class Location:
    """A local or remote file or folder, made by `location`; its text hides the signature of a URL.

    Attributes:
        url: a path or a URL, as it was given.
    """

    url: str
    retry_policy: RetryPolicy = field(default=DEFAULT_RETRY_POLICY, compare=False, repr=False)

    def __str__(self) -> str:
        return mask_secrets(self.url) if self.is_remote else self.url

    def __repr__(self) -> str:
        return f"Location({str(self)!r})"

    def __truediv__(self, name: str) -> "Location":
        """An entry of this folder, below it or above it; a URL or an absolute path replaces the folder.

        Args:
            name: such as `x.tar`, `train/x.tar` or `../x.tar`.
        """
        if _SCHEME.match(name) or name.startswith("/"):
            return location(name, retry_policy=self.retry_policy)
        if self.path is not None:
            return Location(str(self.path / name), self.retry_policy)
        is_web = self._scheme in _WEB
        parts = urlsplit(self.url)
        start, folder = ("", parts.path) if is_web else self.url.split("://", 1)
        folder = folder.rstrip("/")
        while name.startswith("../") and "/" in folder:
            name, folder = name.removeprefix("../"), folder.rpartition("/")[0]
        if is_web:
            path = f"{folder}/{quote(name)}"
            return Location(urlunsplit(parts._replace(path=path)), self.retry_policy)
        return Location(f"{start}://{folder}/{name}", self.retry_policy)

    @property
    def is_remote(self) -> bool:
        """True if this is a URL."""
        return "://" in self.url

    @property
    def path(self) -> Path | None:
        """The path on this machine; None for a URL."""
        return None if self.is_remote else Path(self.url)

    @property
    def name(self) -> str:
        """The last part of the path."""
        if self.path is not None:
            return self.path.name
        if self._scheme in _WEB:
            return unquote(urlsplit(self.url).path.rstrip("/").rpartition("/")[2])
        return self.url.rstrip("/").rpartition("/")[2]

    def exists(self) -> bool:
        """Check whether there is a file or a folder."""
        return remote.exists(self.url, self.retry_policy) if self.path is None else self.path.exists()

    def is_dir(self) -> bool:
        """Check whether this is a folder; in object stores, a folder is a prefix with at least one object."""
        return bool(self.list_sizes()) if self.path is None else self.path.is_dir()

    def size(self) -> int:
        """Size of the file in bytes."""
        if self.path is None:
            return remote.size(self.url, self.retry_policy)
        return self._local("look up", lambda path: path.stat().st_size)

    def version(self) -> tuple[int | None, str]:
        """Size of the file, None if a server does not give it, and a text that changes with the content.

        The text is the checksum or the modification time, as the storage provides.
        """
        if self.path is None:
            return remote.version(self.url, self.retry_policy)
        status = self._local("look up", lambda path: path.stat())
        return status.st_size, str(status.st_mtime_ns)

    def read(self, offset: int = 0, length: int | None = None) -> bytes:
        """Read the file, or a range of it; the result is shorter than `length` only at the end of the file.

        Raises:
            StorageError: the file is missing, may not be read, or could not be read in time.
        """
        if self.path is None:
            return remote.read(self.url, offset, length, self.retry_policy)
        return self._local("read", lambda path: _read(path, offset, length))

    def iter_chunks(self, size: int = _CHUNK) -> Iterator[bytes]:
        """Iterate over the whole file in chunks of `size` bytes."""
        offset = 0
        while chunk := self.read(offset, size):
            heartbeat.progress()
            yield chunk
            offset += len(chunk)
            if len(chunk) < size:
                return

    def download(self, file: Path) -> None:
        """Copy to a file of this machine, which is complete or absent."""
        partial = file.with_name(f"{file.name}.{os.getpid()}.partial")
        try:
            with partial.open("wb") as out:
                out.writelines(self.iter_chunks())
            partial.replace(file)
        finally:
            partial.unlink(missing_ok=True)

    def etag(self) -> str | None:
        """The ETag of an object, for `write`; None if there is none, or no conditional writes."""
        return remote.etag(self.url, self.retry_policy) if self.path is None else None

    def write(self, data: bytes, *, expected_etag: str | None = None) -> None:
        """Write the file and create its parent folders; the file is complete or absent.

        Args:
            expected_etag: of the object that is replaced; "" if there must be none; None replaces any. Only
                S3 checks it.

        Raises:
            StorageError: the file cannot be written; its status is 409 or 412 if another object is there.
        """
        self._check_writable()
        if self.path is None:
            remote.write(self.url, data, self.retry_policy, expected_etag=expected_etag)
        else:
            self._local("write", lambda path: _write_atomic(path, lambda partial: partial.write_bytes(data)))

    def write_chunks(self, chunks: Iterable[bytes | memoryview], size: int) -> None:
        """Write the file from chunks, without all of them in memory; it is complete or absent. Only S3.

        Args:
            size: bytes of all chunks, or an estimate.
        """
        assert self._scheme == "s3", f"{self} is not on S3"
        remote.write_chunks(self.url, chunks, size, self.retry_policy)

    def abort_uploads(self) -> int:
        """Abort unfinished uploads of killed processes to subfolders of this folder; see `remote`."""
        return remote.abort_uploads(self.url, self.retry_policy)

    def upload(self, file: Path) -> None:
        """Copy a file of this machine to this location; the copy is complete or absent."""
        self._check_writable()
        if self.path is None:
            remote.upload(self.url, file, self.retry_policy)
        else:
            self._local("write", lambda path: _write_atomic(path, lambda part: shutil.copyfile(file, part)))

    def list(self, ending: str = "") -> list[str]:
        """Sorted names of the entries with this ending; empty if there is no folder."""
        return sorted(name for name in self.list_sizes() if name.endswith(ending))

    def list_sizes(self) -> dict[str, int | None]:
        """Names of the entries, with the sizes of files in bytes if they are known.

        One request lists about a thousand names; a web server must show a page with links.
        """
        if self.path is None:
            return remote.list_sizes(self.url, self.retry_policy)
        if not self.path.is_dir():
            return {}
        return self._local("list", lambda path: {one.name: one.stat().st_size for one in os.scandir(path)})

    def remove(self) -> None:
        """Delete the file if it exists."""
        self._check_writable()
        if self.path is None:
            remote.remove(self.url, self.retry_policy)
        else:
            self._local("remove", lambda path: path.unlink(missing_ok=True))

    @property
    def _scheme(self) -> str:
        return self.url.partition("://")[0].lower()

    def _check_writable(self) -> None:
        if self.is_remote and self._scheme in _READ_ONLY:
            raise ValueError(f"{self} can only be read: write to a folder, s3:// or gs://")

    def _local(self, action: str, work: Callable[[Path], Result]) -> Result:
        assert self.path is not None
        try:
            return work(self.path)
        except OSError as error:
            if action not in ("write", "remove"):
                raise_if_outage(error, f"cannot {action} {self}")
            status = {FileNotFoundError: 404, PermissionError: 403}.get(type(error))
            raise StorageError(f"cannot {action} {self}: {error.strerror or error}", status) from error


def location(text: str | Path | Location, *, retry_policy: RetryPolicy = DEFAULT_RETRY_POLICY) -> Location:
    """Parse a path, file:///..., s3://bucket/..., gs://, http(s):// or hf://.

    Raises:
        ValueError: another scheme, such as `pipe:`, which would start a program; or a URL with a password,
            which would appear in logs and in the run's config.
    """
    if isinstance(text, Location):
        return text
    url = str(text)
    if isinstance(text, Path):
        if re.match(rf"({'|'.join(SCHEMES)}):", text.parts[0] if text.parts else ""):
            raise ValueError(f"expected a URL as text, got a Path: {url!r}; fix: pass a str")
        return Location(url, retry_policy)
    match = _SCHEME.match(url)
    if match is None:
        return Location(url, retry_policy)
    scheme = (match[1] or match[2]).lower()
    if scheme not in SCHEMES or match[1] is None:
        raise ValueError(
            f"{mask_secrets(url)!r} cannot be used: expected a path or a URL that begins with "
            + ", ".join(f"{name}://" for name in SCHEMES)
        )
    if re.match(r"[^/?#]*:[^/?#]*@", url.partition("://")[2]):
        raise ValueError(
            f"{mask_secrets(url)!r} holds a password: put it in ~/.netrc, for s3:// into the environment"
        )
    return Location(unquote(urlsplit(url).path) if scheme == "file" else url, retry_policy)


def local_out(text: str | Path) -> Path:
    """The path of OUT, for a command that writes on this machine only.

    Raises:
        ValueError: a URL.
    """
    out = location(text)
    if out.path is None:
        raise ValueError(f"OUT {out}: expected a path, got a URL; fix: write to a path, then copy it")
    return out.path


def _read(path: Path, offset: int, length: int | None) -> bytes:
    with open_regular(path) as file:
        file.seek(offset)
        return file.read(-1 if length is None else length)


def _write_atomic(path: Path, fill: Callable[[Path], object]) -> None:
    """Fill a file under another name, sync it to disk and rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replaced_file(path) as partial:
        fill(partial)
        fsync_path(partial)
