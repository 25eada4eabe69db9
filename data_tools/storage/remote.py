"""Storage behind URLs. The only file that knows fsspec; `data_tools/storage/location.py` is its one user.

File systems belong to a process: their connections live on a thread that a forked child does not have.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote

import fsspec
import fsspec.asyn

from kinemae.data_tools import heartbeat
from kinemae.data_tools.storage.retries import RetryPolicy, StorageError, mask_secrets, retry

Result = TypeVar("Result")

EXTRAS = {
    "s3": "pip install 'kinemae[s3]'",
    "http": "pip install 'kinemae[http]'",
    "https": "pip install 'kinemae[http]'",
    "gs": "pip install gcsfs",
    "hf": "pip install huggingface_hub",
}
# The fsspec names for an object's checksum or the time of its last change.
_TAGS = ("ETag", "etag", "Content-MD5", "Digest", "blob_id", "Last-Modified", "LastModified", "updated")
_CONNECT_S = 10.0
_PIECE = 1 << 18
_UNKNOWN_SIZE = 1 << 30


def read(url: str, offset: int, length: int | None, retry_policy: RetryPolicy) -> bytes:
    """Bytes of an object; fewer than `length` only where the object ends.

    What a broken connection has brought is kept, and the next try asks for the rest.
    """
    download = _Download(url, offset, length)
    fs = _file_system(url, retry_policy)

    def attempt(seconds: float) -> bytes:
        _wait_for(lambda: download.go_on(fs), seconds)
        return bytes(download.received)

    size = _UNKNOWN_SIZE if length is None else length
    return retry(
        attempt,
        doing="read",
        url=url,
        retry_policy=retry_policy,
        size=size,
        progress=lambda: len(download.received),
    )


def size(url: str, retry_policy: RetryPolicy) -> int:
    """Bytes of an object."""
    found = _call(url, "info", _path(url), doing="look up", retry_policy=retry_policy)["size"]
    if found is None:
        raise StorageError(f"cannot tell the size of {mask_secrets(url)}: its server does not say")
    return int(found)


def version(url: str, retry_policy: RetryPolicy) -> tuple[int | None, str]:
    """Size of an object if the server gives it, and its ETag or modification time."""
    found = _call(url, "info", _path(url), doing="look up", retry_policy=retry_policy)
    tags = [f"{name}={found[name]}" for name in _TAGS if found.get(name)]
    return found.get("size"), " ".join(tags)


def exists(url: str, retry_policy: RetryPolicy) -> bool:
    """Whether there is an object or a folder of this name."""
    try:
        _call(url, "info", _path(url), doing="look up", retry_policy=retry_policy)
    except StorageError as error:
        if error.is_missing:
            return False
        raise
    return True


def entries(url: str, retry_policy: RetryPolicy) -> dict[str, int | None]:
    """Names directly inside a folder, with the sizes of objects where the server tells them."""
    path = _path(url).partition("?")[0].rstrip("/")
    try:
        listed = _call(url, "ls", path + "/", doing="list", retry_policy=retry_policy, detail=True)
    except StorageError as error:
        if error.is_missing:
            return {}
        raise
    names = {entry["name"].rstrip("/"): entry.get("size") for entry in listed}
    return {
        unquote(name.rpartition("/")[2]) if url.startswith("http") else name.rpartition("/")[2]: bytes_
        for name, bytes_ in names.items()
        if name.rpartition("/")[0] == path
    }


def write(url: str, data: bytes, retry_policy: RetryPolicy) -> None:
    """Make an object of these bytes; readers see all of it or nothing."""
    _call(url, "pipe_file", _path(url), data, doing="write", retry_policy=retry_policy, size=len(data))


def upload(url: str, file: Path, retry_policy: RetryPolicy) -> None:
    """Make an object of a file's bytes; readers see all of it or nothing."""
    there = file.stat().st_size
    _call(url, "put_file", str(file), _path(url), doing="write", retry_policy=retry_policy, size=there)


def remove(url: str, retry_policy: RetryPolicy) -> None:
    """Delete an object; there need be none."""
    try:
        _call(url, "rm_file", _path(url), doing="remove", retry_policy=retry_policy)
    except StorageError as error:
        if not error.is_missing:
            raise


class _Download:
    """A range of an object on its way: what has come, and how much there will be."""

    def __init__(self, url: str, offset: int, length: int | None):
        self.url = url
        self.offset = offset
        self.wanted = length
        self.received = bytearray()

    async def go_on(self, fs: Any) -> None:
        """Ask for what is missing.

        Raises:
            EOFError: the body ended too early, without an error from below.
        """
        if self.wanted == 0:
            return
        protocol = self.url.partition("://")[0].lower()
        source = {"http": self._over_http, "https": self._over_http, "s3": self._over_s3}
        await source.get(protocol, self._over_any)(fs)
        if self.wanted is not None and len(self.received) < self.wanted:
            raise EOFError(f"the body ended after {len(self.received)} of {self.wanted} bytes")

    @property
    def _first(self) -> int:
        return self.offset + len(self.received)

    @property
    def _range(self) -> str:
        last = "" if self.wanted is None else self.offset + self.wanted - 1
        return f"bytes={self._first}-{last}"

    def _total_is(self, total: int) -> None:
        """The object's size is known: no more can be had than there is."""
        there = max(total - self.offset, 0)
        self.wanted = there if self.wanted is None else min(self.wanted, there)

    def _ranged(self, headers: Any) -> None:
        """Read `Content-Range: bytes 0-9/100`."""
        total = headers.get("Content-Range", "").rpartition("/")[2]
        if total.isdigit():
            self._total_is(int(total))

    async def _over_http(self, fs: Any) -> None:
        session = await fs.set_session()
        headers = {"Range": self._range, "Accept-Encoding": "identity"}
        async with session.get(fs.encode_url(self.url), headers=headers) as answer:
            if answer.status == 416:
                self._ranged(answer.headers)
                self.wanted = len(self.received)
                return
            answer.raise_for_status()
            if answer.status == 206:
                self._ranged(answer.headers)
            elif self._first > 0:
                raise StorageError(
                    f"cannot read {mask_secrets(self.url)} in parts: its server ignores byte ranges; copy "
                    "the shards to a folder or to an object store"
                )
            elif answer.content_length is not None:
                self._total_is(answer.content_length)
            async for piece in answer.content.iter_chunked(_PIECE):
                if self._take(piece):
                    return

    async def _over_s3(self, fs: Any) -> None:
        bucket, key, version = fs.split_path(self.url)
        chosen = {"VersionId": version} if version else {}
        try:
            answer = await fs._call_s3("get_object", Bucket=bucket, Key=key, Range=self._range, **chosen)
        except OSError as error:
            if "InvalidRange" not in str(error.__cause__):
                raise
            self.wanted = len(self.received)
            return
        self._ranged({"Content-Range": answer.get("ContentRange", "")})
        async with answer["Body"] as body:
            while piece := await body.read(_PIECE):
                self._take(piece)

    async def _over_any(self, fs: Any) -> None:
        path = _path(self.url)
        if self.wanted is None:
            self._total_is((await _method(fs, "info")(path))["size"])
            assert self.wanted is not None
        end = self.offset + self.wanted
        piece = await _method(fs, "cat_file")(path, start=self._first, end=end)
        if not self._take(piece):
            self._total_is((await _method(fs, "info")(path))["size"])

    def _take(self, piece: bytes) -> bool:
        """Keep what was asked for; whether that was the last of it."""
        heartbeat.progress()
        self.received += piece
        if self.wanted is not None and len(self.received) > self.wanted:
            del self.received[self.wanted :]
        return self.wanted is not None and len(self.received) == self.wanted


def _call(
    url: str,
    method: str,
    *arguments: Any,
    doing: str,
    retry_policy: RetryPolicy,
    size: int = 0,
    **options: Any,
) -> Any:
    fs = _file_system(url, retry_policy)
    return retry(
        lambda seconds: _wait_for(lambda: _method(fs, method)(*arguments, **options), seconds),
        doing=doing,
        url=url,
        retry_policy=retry_policy,
        size=size,
    )


def _method(fs: Any, name: str) -> Callable[..., Awaitable[Any]]:
    if fs.async_impl:
        return getattr(fs, f"_{name}")
    return lambda *arguments, **options: asyncio.to_thread(getattr(fs, name), *arguments, **options)


def _wait_for(work: Callable[[], Awaitable[Result]], seconds: float) -> Result:
    """Run something on fsspec's thread, and no longer than that."""

    async def bounded() -> Result:
        return await asyncio.wait_for(work(), max(seconds, 0.001))

    return fsspec.asyn.sync(fsspec.asyn.get_loop(), bounded)


def _path(url: str) -> str:
    """What the file system calls it: web addresses whole, all others without the scheme."""
    scheme, _, rest = url.partition("://")
    return url if scheme.lower() in ("http", "https") else rest


def _file_system(url: str, retry_policy: RetryPolicy) -> Any:
    return _file_system_of(url.partition("://")[0].lower(), url.isascii(), retry_policy.idle_s, os.getpid())


@lru_cache(maxsize=16)
def _file_system_of(protocol: str, is_encoded: bool, idle_s: float, _process: int) -> Any:
    try:
        if protocol in ("http", "https"):
            from aiohttp import ClientTimeout

            times = ClientTimeout(total=None, sock_connect=min(_CONNECT_S, idle_s), sock_read=idle_s)
            session = {"timeout": times, "trust_env": True}  # passwords from ~/.netrc, and proxies
            options: dict[str, Any] = {"client_kwargs": session, "encoded": is_encoded}
        elif protocol == "s3":
            once = {"total_max_attempts": 1}
            config = {"connect_timeout": min(_CONNECT_S, idle_s), "read_timeout": idle_s, "retries": once}
            options = {"config_kwargs": config, "use_listings_cache": False}
        else:
            options = {"use_listings_cache": False}
        fs = fsspec.filesystem(protocol, skip_instance_cache=True, **options)
    except ImportError as error:
        raise ValueError(
            f"{protocol}:// needs a library that is not installed ({error}): {EXTRAS[protocol]}"
        ) from error
    if protocol == "s3":
        fs.retries = 1  # ours are the ones that are bounded in time
    return fs
