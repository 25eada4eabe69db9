"""A local or remote file that is read once, from its beginning to its end."""

import io
import threading
from collections.abc import Generator
from concurrent.futures import Future
from contextvars import copy_context
from typing import Any

from kinemae.data_tools import heartbeat
from kinemae.data_tools.storage.location import Location, StorageError
from kinemae.data_tools.storage.retries import raise_if_outage, retry_during_outage

_FIRST_CHUNK, _CHUNK = 1 << 20, 8 << 20


class SequentialFile(io.RawIOBase):
    """A file without seeking; a thread requests the next chunk while the last one is in use.

    A chunk is read with the retries of its location, so a broken connection or an outage loses no byte.

    Raises:
        StorageUnavailable: an outage lasted longer than `outage_s` of the location.
        StorageError: the file is missing or may not be read.
    """

    def __init__(self, place: Location):
        self._chunks = _read_ahead(place)
        self._chunk = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._chunk:
            self._chunk = memoryview(next(self._chunks, b""))
        count = min(len(buffer), len(self._chunk))
        buffer[:count] = self._chunk[:count]
        self._chunk = self._chunk[count:]
        return count

    def close(self) -> None:
        self._chunks.close()
        super().close()


def _read_ahead(place: Location) -> Generator[bytes, None, None]:
    offset, size = 0, _FIRST_CHUNK
    request = _request(place, offset, size)
    while True:
        with heartbeat.at_storage(place.retry_policy.outage_s):
            chunk = request.result()
        is_last = len(chunk) < size
        offset, size = offset + len(chunk), _CHUNK
        if not is_last:
            request = _request(place, offset, size)
        yield chunk
        if is_last:
            return


def _request(place: Location, offset: int, size: int) -> Future[bytes]:
    """Read a chunk in a daemon thread: a read that blocks must not delay the end of a process."""
    future: Future[bytes] = Future()
    context = copy_context()  # with the listener of heartbeats

    def run() -> None:
        try:
            future.set_result(context.run(_read, place, offset, size))
        except BaseException as error:  # raised again by `result`
            future.set_exception(error)

    threading.Thread(target=run, daemon=True, name="read-ahead").start()
    return future


def _read(place: Location, offset: int, size: int) -> bytes:
    def attempt() -> bytes:
        try:
            return place.read(offset, size)
        except StorageError as error:
            if isinstance(error.__cause__, OSError) and place.path is not None:
                raise_if_outage(error.__cause__, f"cannot read {place}", place.path)  # an unmounted disk
            raise

    return retry_during_outage(attempt, outage_s=place.retry_policy.outage_s)
