"""Places for shards: folders of this machine, object stores and web servers, behind one small value.

    place = location("s3://bucket/shards/train")
    (place / "shard-000000.tar").read(512, 10_000)

A `Location` holds no connection: it may be pickled, hashed and taken through a fork.
"""

import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from kinemae.data_tools import heartbeat
from kinemae.data_tools.files import open_regular
from kinemae.data_tools.storage import remote
from kinemae.data_tools.storage.outage import raise_if_outage
from kinemae.data_tools.storage.retries import (
    DEFAULT_RETRY_POLICY,
    RetryPolicy,
    StorageError,
    StorageUnavailable,
    mask_secrets,
)

__all__ = [
    "DEFAULT_RETRY_POLICY",
    "SCHEMES",
    "Location",
    "RetryPolicy",
    "StorageError",
    "StorageUnavailable",
    "location",
]

Result = TypeVar("Result")

SCHEMES = ("file", "s3", "gs", "http", "https", "hf")
_WEB = ("http", "https")
_READ_ONLY = (*_WEB, "hf")
_READING = ("read", "look up", "list")
_PIECE = 16 << 20
# `pipe:` starts a program, and chains such as simplecache::s3://... hide the scheme that counts.
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.:-]*)://|(pipe|data|file|s3|gs|https?|hf|ftp):", re.IGNORECASE)


@dataclass(frozen=True)
class Location:
    """A file or folder, here or remote; made by `location`. As text, a URL's signature is left out.

    Attributes:
        url: as it was given, signature and all.
    """

    url: str
    retry_policy: RetryPolicy = field(default=DEFAULT_RETRY_POLICY, compare=False, repr=False)

    def __str__(self) -> str:
        return mask_secrets(self.url) if self.is_remote else self.url

    def __repr__(self) -> str:
        return f"Location({str(self)!r})"

    def __truediv__(self, name: str) -> "Location":
        """What is inside of that name; a name that is a URL or an absolute path stands for itself."""
        if _SCHEME.match(name) or name.startswith("/"):
            return location(name, retry_policy=self.retry_policy)
        if self.path is not None:
            return Location(str(self.path / name), self.retry_policy)
        if not self._is_web:
            return Location(f"{self.url.rstrip('/')}/{name}", self.retry_policy)
        parts = urlsplit(self.url)
        path = f"{parts.path.rstrip('/')}/{quote(name)}"
        return Location(urlunsplit(parts._replace(path=path)), self.retry_policy)

    @property
    def is_remote(self) -> bool:
        """Whether it lies behind a URL."""
        return "://" in self.url

    @property
    def path(self) -> Path | None:
        """Where it lies on this machine; None where it is remote."""
        return None if self.is_remote else Path(self.url)

    @property
    def name(self) -> str:
        """The last part of the path."""
        if self.path is not None:
            return self.path.name
        if self._is_web:
            return unquote(urlsplit(self.url).path.rstrip("/").rpartition("/")[2])
        return self.url.rstrip("/").rpartition("/")[2]

    def exists(self) -> bool:
        """Whether there is a file or a folder."""
        return remote.exists(self.url, self.retry_policy) if self.path is None else self.path.exists()

    def is_dir(self) -> bool:
        """Whether it is a folder; object stores have those only with something in them."""
        return bool(remote.entries(self.url, self.retry_policy)) if self.path is None else self.path.is_dir()

    def size(self) -> int:
        """Bytes of the file."""
        if self.path is None:
            return remote.size(self.url, self.retry_policy)
        return self._here("look up", lambda path: path.stat().st_size)

    def version(self) -> tuple[int | None, str]:
        """Bytes of the file, None if a server does not tell them, and a text that changes with its content.

        The text is the checksum or the time of the last change, as the storage provides.
        """
        if self.path is None:
            return remote.version(self.url, self.retry_policy)
        status = self._here("look up", lambda path: path.stat())
        return status.st_size, str(status.st_mtime_ns)

    def read(self, offset: int = 0, length: int | None = None) -> bytes:
        """Bytes of the file from `offset` on, all of them by default; fewer only where it ends.

        Raises:
            StorageError: it is not there, may not be read, or could not be read in time.
        """
        if self.path is None:
            return remote.read(self.url, offset, length, self.retry_policy)
        return self._here("read", lambda path: _read(path, offset, length))

    def iter_chunks(self, size: int = _PIECE) -> Iterator[bytes]:
        """The whole file, a piece at a time."""
        offset = 0
        while piece := self.read(offset, size):
            heartbeat.progress()
            yield piece
            offset += len(piece)
            if len(piece) < size:
                return

    def download(self, file: Path) -> None:
        """Copy it to a file of this machine, which is whole or absent."""
        partial = file.with_name(f"{file.name}.{os.getpid()}.partial")
        try:
            with partial.open("wb") as out:
                out.writelines(self.iter_chunks())
            partial.replace(file)
        finally:
            partial.unlink(missing_ok=True)

    def write(self, data: bytes) -> None:
        """Make a file of these bytes, and the folders above it; readers see all of it or nothing."""
        self._refuse_read_only()
        if self.path is None:
            remote.write(self.url, data, self.retry_policy)
        else:
            self._here("write", lambda path: _replace(path, lambda partial: partial.write_bytes(data)))

    def upload(self, file: Path) -> None:
        """Copy a file of this machine to here; readers see all of it or nothing."""
        self._refuse_read_only()
        if self.path is None:
            remote.upload(self.url, file, self.retry_policy)
        else:
            self._here("write", lambda path: _replace(path, lambda partial: shutil.copyfile(file, partial)))

    def list(self, ending: str = "") -> list[str]:
        """Names of what is directly inside and ends like that, sorted; none where there is no folder."""
        return sorted(name for name in self.list_sizes() if name.endswith(ending))

    def list_sizes(self) -> dict[str, int | None]:
        """Names of what is directly inside, with bytes of files where these are known.

        One request for about a thousand names; a web server must show a page with links.
        """
        if self.path is None:
            return remote.entries(self.url, self.retry_policy)
        if not self.path.is_dir():
            return {}
        return self._here(
            "list", lambda path: {entry.name: entry.stat().st_size for entry in os.scandir(path)}
        )

    def remove(self) -> None:
        """Delete the file; there need be none."""
        self._refuse_read_only()
        if self.path is None:
            remote.remove(self.url, self.retry_policy)
        else:
            self._here("remove", lambda path: path.unlink(missing_ok=True))

    @property
    def _is_web(self) -> bool:
        return self.url.partition("://")[0].lower() in _WEB

    def _refuse_read_only(self) -> None:
        if self.is_remote and self.url.partition("://")[0].lower() in _READ_ONLY:
            raise ValueError(f"{self} can only be read: write to a folder, s3:// or gs://")

    def _here(self, doing: str, work: Callable[[Path], Result]) -> Result:
        assert self.path is not None
        try:
            return work(self.path)
        except OSError as error:
            if doing in _READING:
                raise_if_outage(error, f"cannot {doing} {self}")
            status = {FileNotFoundError: 404, PermissionError: 403}.get(type(error))
            raise StorageError(f"cannot {doing} {self}: {error.strerror or error}", status) from error


def location(text: str | Path | Location, *, retry_policy: RetryPolicy = DEFAULT_RETRY_POLICY) -> Location:
    """The place that a user means: a path, file:///..., s3://bucket/..., gs://, http(s):// or hf://.

    Raises:
        ValueError: another scheme, such as `pipe:`, which would start programs; or a password in the URL,
            which would end up in logs and in the config that a run keeps.
    """
    if isinstance(text, Location):
        return text
    url = str(text)
    if isinstance(text, Path):
        if re.match(rf"({'|'.join(SCHEMES)}):", text.parts[0] if text.parts else ""):
            raise ValueError(f"{url!r} is a URL that was made a path on its way: hand it on as text")
        return Location(url, retry_policy)
    found = _SCHEME.match(url)
    if found is None:
        return Location(url, retry_policy)
    scheme = (found[1] or found[2]).lower()
    if scheme not in SCHEMES or found[1] is None:
        raise ValueError(
            f"{mask_secrets(url)!r} cannot be used: expected a path or a URL that begins with "
            + ", ".join(f"{name}://" for name in SCHEMES)
        )
    if re.match(r"[^/?#]*:[^/?#]*@", url.partition("://")[2]):
        raise ValueError(
            f"{mask_secrets(url)!r} holds a password: put it in ~/.netrc, for s3:// into the environment"
        )
    if scheme == "file":
        return Location(unquote(urlsplit(url).path), retry_policy)
    return Location(url, retry_policy)


def _read(path: Path, offset: int, length: int | None) -> bytes:
    with open_regular(path) as file:
        file.seek(offset)
        return file.read(-1 if length is None else length)


def _replace(path: Path, fill: Callable[[Path], object]) -> None:
    """Fill a file beside, see it on the disk, and give it its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    try:
        fill(partial)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
