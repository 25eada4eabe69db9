"""Storage behind URLs, through fsspec; `kinemae.data_tools.storage.location` is its only user.

Each process has its own file systems: their connections use a thread that a forked child does not have.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote

import fsspec
import fsspec.asyn

from kinemae.data_tools import heartbeat
from kinemae.data_tools.storage.retries import RetryPolicy, StorageError, http_status, mask_secrets, retry

Result = TypeVar("Result")

INSTALL = {
    "s3": "pip install 'kinemae[s3]'",
    "http": "pip install 'kinemae[http]'",
    "https": "pip install 'kinemae[http]'",
    "gs": "pip install gcsfs",
    "hf": "pip install huggingface_hub",
}
# The keys under which fsspec gives an object's checksum or the time of its last change.
_TAGS = ("ETag", "etag", "Content-MD5", "Digest", "blob_id", "Last-Modified", "LastModified", "updated")
_CONNECT_S = 10.0
_CHUNK = 1 << 18
_PART, _MOST_PARTS = 16 << 20, 9_000  # of an upload; S3 allows 10,000 parts of at least 5 MiB
_UNKNOWN_SIZE = 1 << 30


def read(url: str, offset: int, length: int | None, policy: RetryPolicy) -> bytes:
    """Read a range of an object; the result is shorter than `length` only at the end of the object.

    After a broken connection, the next attempt requests only the missing bytes.
    """
    download = _Download(url, offset, length)
    fs = _file_system(url, policy)

    def attempt(seconds: float) -> bytes:
        _run(lambda: download.resume(fs), seconds)
        return bytes(download.received)

    return retry(
        attempt,
        action="read",
        url=url,
        policy=policy,
        size=_UNKNOWN_SIZE if length is None else length,
        bytes_received=lambda: len(download.received),
    )


def size(url: str, policy: RetryPolicy) -> int:
    """Size of an object in bytes."""
    found = _call(url, "info", _path(url), action="look up", policy=policy)["size"]
    if found is None:
        raise StorageError(f"cannot determine the size of {mask_secrets(url)}: its server does not report it")
    return int(found)


def version(url: str, policy: RetryPolicy) -> tuple[int | None, str]:
    """Size of an object if the server gives it, and its ETag or modification time."""
    found = _call(url, "info", _path(url), action="look up", policy=policy)
    tags = [f"{name}={found[name]}" for name in _TAGS if found.get(name)]
    return found.get("size"), " ".join(tags)


def exists(url: str, policy: RetryPolicy) -> bool:
    """Check whether there is an object or a folder of this name."""
    try:
        _call(url, "info", _path(url), action="look up", policy=policy)
    except StorageError as error:
        if error.is_missing:
            return False
        raise
    return True


def list_sizes(url: str, policy: RetryPolicy) -> dict[str, int | None]:
    """Names directly inside a folder, with the sizes of objects if the server gives them."""
    path = _path(url).partition("?")[0].rstrip("/")
    try:
        listed = _call(url, "ls", path + "/", action="list", policy=policy, detail=True)
    except StorageError as error:
        if error.is_missing:
            return {}
        raise
    sizes = {entry["name"].rstrip("/"): entry.get("size") for entry in listed}
    return {
        unquote(name.rpartition("/")[2]) if url.startswith("http") else name.rpartition("/")[2]: bytes_
        for name, bytes_ in sizes.items()
        if name.rpartition("/")[0] == path
    }


def etag(url: str, policy: RetryPolicy) -> str | None:
    """The ETag of an object; None if there is no object, or if its store has no conditional writes."""
    if url.partition("://")[0].lower() != "s3":
        return None
    try:
        tag = _call(url, "info", _path(url), action="look up", policy=policy).get("ETag")
    except StorageError as error:
        if error.is_missing:
            return None
        raise
    return None if tag is None else str(tag)


def write(url: str, data: bytes, policy: RetryPolicy, *, expected_etag: str | None = None) -> None:
    """Write an object; it is complete or absent.

    Args:
        expected_etag: of the object that is replaced; "" if there must be none; None replaces any.

    Raises:
        StorageError: with status 409 or 412 if another object is there, on S3. Stores that reject the
            condition, and other kinds, write without it.
    """
    is_conditional = expected_etag is not None and url.partition("://")[0].lower() == "s3"
    condition = {"IfMatch": expected_etag} if expected_etag else {"IfNoneMatch": "*"}
    options: dict[str, Any] = condition if is_conditional else {}

    def attempt(seconds: float) -> None:
        pipe = _method(_file_system(url, policy), "pipe_file")
        try:
            _run(lambda: pipe(_path(url), data, **options), seconds)
        except Exception as error:
            if not options or not _lacks_conditions(error):
                raise
            options.clear()
            _run(lambda: pipe(_path(url), data), seconds)

    try:
        retry(attempt, action="write", url=url, policy=policy, size=len(data))
    except StorageError as error:
        # The answer to an earlier attempt may be lost: its object is the one that is there.
        if error.status not in (409, 412) or read(url, 0, None, policy) != data:
            raise


def _lacks_conditions(error: Exception) -> bool:
    """Whether the store or an old botocore has no conditional writes."""
    return http_status(error) == 501 or type(error).__name__ == "ParamValidationError"


def upload(url: str, file: Path, policy: RetryPolicy) -> None:
    """Copy a file to an object; it is complete or absent."""
    size = file.stat().st_size
    _call(url, "put_file", str(file), _path(url), action="write", policy=policy, size=size)


def write_chunks(url: str, chunks: Iterable[bytes | memoryview], size: int, policy: RetryPolicy) -> None:
    """Write an object of S3 in parts of 16 MiB or more; it is complete or absent.

    Each part is retried alone, so that the memory for one part is enough.

    Args:
        size: bytes of all chunks, or an estimate; S3 allows 10,000 parts.
    """
    fs = _file_system(url, policy)
    bucket, key, _ = fs.split_path(url)

    def call(method: str, *, limits: RetryPolicy = policy, **options: Any) -> Any:
        return retry(
            lambda seconds: _run(lambda: fs._call_s3(method, Bucket=bucket, Key=key, **options), seconds),
            action="write",
            url=url,
            policy=limits,
            size=len(options.get("Body", b"")),
        )

    upload, parts = call("create_multipart_upload")["UploadId"], []
    try:
        for number, part in enumerate(_parts(chunks, max(_PART, size // _MOST_PARTS)), 1):
            sent = call("upload_part", UploadId=upload, PartNumber=number, Body=part)
            parts.append({"PartNumber": number, "ETag": sent["ETag"]})
            heartbeat.progress()
        try:
            call("complete_multipart_upload", UploadId=upload, MultipartUpload={"Parts": parts})
        except StorageError as error:
            if not (error.is_missing and exists(url, policy)):  # the response of an attempt was lost
                raise
    except BaseException:
        with suppress(StorageError):
            call("abort_multipart_upload", limits=replace(policy, attempts=1), UploadId=upload)
        raise


def _parts(chunks: Iterable[bytes | memoryview], size: int) -> Iterator[bytes]:
    """Join chunks to parts of at least `size` bytes, the last one shorter; one empty part for no bytes."""
    part, is_first = bytearray(), True
    for chunk in chunks:
        part += chunk
        if len(part) >= size:
            yield bytes(part)
            part, is_first = bytearray(), False
    if part or is_first:
        yield bytes(part)


def abort_uploads(url: str, policy: RetryPolicy) -> int:
    """Abort unfinished uploads of `write_chunks` to the subfolders of a folder of S3; return their number.

    Deeper folders may belong to another run, whose uploads are in progress.
    """
    fs = _file_system(url, policy)
    bucket, prefix, _ = fs.split_path(url.rstrip("/") + "/")
    prefix = prefix.rstrip("/") + "/"

    def call(method: str, **options: Any) -> Any:
        return retry(
            lambda seconds: _run(lambda: fs._call_s3(method, Bucket=bucket, **options), seconds),
            action="remove unfinished uploads of",
            url=url,
            policy=policy,
        )

    found = call("list_multipart_uploads", Prefix=prefix).get("Uploads", [])  # at most 1,000
    uploads = [upload for upload in found if upload["Key"].removeprefix(prefix).count("/") == 1]
    for upload in uploads:
        call("abort_multipart_upload", Key=upload["Key"], UploadId=upload["UploadId"])
    return len(uploads)


def remove(url: str, policy: RetryPolicy) -> None:
    """Delete an object if it exists."""
    try:
        _call(url, "rm_file", _path(url), action="remove", policy=policy)
    except StorageError as error:
        if not error.is_missing:
            raise


class _Download:
    """A download of a byte range that can be resumed after an error.

    Attributes:
        length: number of bytes to receive; None until it is known.
        received: the bytes so far.
    """

    def __init__(self, url: str, offset: int, length: int | None):
        self.url = url
        self.offset = offset
        self.length = length
        self.received = bytearray()

    async def resume(self, fs: Any) -> None:
        """Request the missing bytes.

        Raises:
            EOFError: the body ended too early without an error of the library.
        """
        if self.length == 0:
            return
        protocol = self.url.partition("://")[0].lower()
        methods = {"http": self._from_http, "https": self._from_http, "s3": self._from_s3}
        await methods.get(protocol, self._from_any)(fs)
        if self.length is not None and len(self.received) < self.length:
            raise EOFError(f"the body ended after {len(self.received)} of {self.length} bytes")

    @property
    def _start(self) -> int:
        return self.offset + len(self.received)

    @property
    def _range(self) -> str:
        last = "" if self.length is None else self.offset + self.length - 1
        return f"bytes={self._start}-{last}"

    def _limit_to(self, object_size: int) -> None:
        available = max(object_size - self.offset, 0)
        self.length = available if self.length is None else min(self.length, available)

    def _read_content_range(self, header: str) -> None:
        """Read the size from `Content-Range: bytes 0-9/100`."""
        total = header.rpartition("/")[2]
        if total.isdigit():
            self._limit_to(int(total))

    async def _from_http(self, fs: Any) -> None:
        session = await fs.set_session()
        headers = {"Range": self._range, "Accept-Encoding": "identity"}
        async with session.get(fs.encode_url(self.url), headers=headers) as response:
            if response.status == 416:
                self.length = len(self.received)
                return
            response.raise_for_status()
            if response.status == 206:
                self._read_content_range(response.headers.get("Content-Range", ""))
            elif self._start > 0:
                raise StorageError(
                    f"cannot read {mask_secrets(self.url)} in parts: its server ignores byte ranges; copy "
                    "the shards to a folder or to an object store"
                )
            elif response.content_length is not None:
                self._limit_to(response.content_length)
            async for chunk in response.content.iter_chunked(_CHUNK):
                if self._append(chunk):
                    return

    async def _from_s3(self, fs: Any) -> None:
        bucket, key, version = fs.split_path(self.url)
        options = {"VersionId": version} if version else {}
        try:
            response = await fs._call_s3("get_object", Bucket=bucket, Key=key, Range=self._range, **options)
        except OSError as error:
            if "InvalidRange" not in str(error.__cause__):
                raise
            self.length = len(self.received)
            return
        self._read_content_range(response.get("ContentRange", ""))
        async with response["Body"] as body:
            while chunk := await body.read(_CHUNK):
                self._append(chunk)

    async def _from_any(self, fs: Any) -> None:
        path = _path(self.url)
        if self.length is None:
            self._limit_to((await _method(fs, "info")(path))["size"])
            assert self.length is not None
        end = self.offset + self.length
        chunk = await _method(fs, "cat_file")(path, start=self._start, end=end)
        if not self._append(chunk):
            self._limit_to((await _method(fs, "info")(path))["size"])

    def _append(self, chunk: bytes) -> bool:
        """Store received bytes; return whether the range is complete."""
        heartbeat.progress()
        self.received += chunk
        if self.length is not None:
            del self.received[self.length :]
        return len(self.received) == self.length


def _call(
    url: str, method: str, *arguments: Any, action: str, policy: RetryPolicy, size: int = 0, **options: Any
) -> Any:
    fs = _file_system(url, policy)
    return retry(
        lambda seconds: _run(lambda: _method(fs, method)(*arguments, **options), seconds),
        action=action,
        url=url,
        policy=policy,
        size=size,
    )


def _method(fs: Any, name: str) -> Callable[..., Awaitable[Any]]:
    if fs.async_impl:
        return getattr(fs, f"_{name}")
    return lambda *arguments, **options: asyncio.to_thread(getattr(fs, name), *arguments, **options)


def _run(work: Callable[[], Awaitable[Result]], seconds: float) -> Result:
    """Run a coroutine on fsspec's thread with a time limit."""

    async def limited() -> Result:
        return await asyncio.wait_for(work(), max(seconds, 0.001))

    return fsspec.asyn.sync(fsspec.asyn.get_loop(), limited)


def _path(url: str) -> str:
    """The path that fsspec expects: the whole URL for web servers, else the URL without its scheme."""
    scheme, _, rest = url.partition("://")
    return url if scheme.lower() in ("http", "https") else rest


def _file_system(url: str, policy: RetryPolicy) -> Any:
    return _file_system_of(url.partition("://")[0].lower(), url.isascii(), policy.idle_s, os.getpid())


@lru_cache(maxsize=16)
def _file_system_of(protocol: str, is_encoded: bool, idle_s: float, _process: int) -> Any:
    options: dict[str, Any] = {"use_listings_cache": False}
    try:
        if protocol in ("http", "https"):
            from aiohttp import ClientTimeout

            timeout = ClientTimeout(total=None, sock_connect=min(_CONNECT_S, idle_s), sock_read=idle_s)
            session = {"timeout": timeout, "trust_env": True}  # passwords from ~/.netrc, and proxies
            options = {"client_kwargs": session, "encoded": is_encoded}
        elif protocol == "s3":
            retries = {"total_max_attempts": 1}
            timeouts = {"connect_timeout": min(_CONNECT_S, idle_s), "read_timeout": idle_s}
            options["config_kwargs"] = {**timeouts, "retries": retries}
        fs = fsspec.filesystem(protocol, skip_instance_cache=True, **options)
    except ImportError as error:
        raise ValueError(
            f"{protocol}:// needs a library that is not installed ({error}): {INSTALL[protocol]}"
        ) from error
    if protocol == "s3":
        fs.retries = 1  # `retry` limits attempts and time
    return fs
