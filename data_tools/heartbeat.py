"""Heartbeats of a worker process. The parent process kills a worker whose heartbeats stop.

Long work calls `progress` after each piece. While a storage is down, it calls `waiting_for_storage` about
twice a second. It reads the bytes of a sample inside `at_storage`. A monitored process installs a `Listener`.

Each thread has its own listener. The network thread of a store reports to the listener of its caller.
"""

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from time import monotonic

from kinemae.data_tools.command import log

_LOG_EVERY_S = 60.0


class Listener:
    """Receives the heartbeats of this process.

    Args:
        on_outage: called with the arguments of `outage`; the default logs an outage once a minute.
    """

    def __init__(self, on_outage: Callable[[str], None] | None = None) -> None:
        self._on_outage = on_outage
        self._since_s = 0.0
        self._logged_s = 0.0

    def progress(self) -> None:
        """Handle a heartbeat: a piece of the work is done."""

    def storage_read(self, limit_s: float | None) -> None:
        """Handle the start of a sample's read, with its time limit without progress, or its end (None)."""

    def outage(self, reason: str) -> None:
        """Handle an outage of a storage; an empty reason means that it answers again."""
        now_s = monotonic()
        if self._on_outage is not None:
            self._on_outage(reason)
        elif not reason:
            if self._since_s:
                log.warning("the storage answers again after %.0f s", now_s - self._since_s)
            self._since_s = 0.0
        elif not self._since_s or now_s - self._logged_s >= _LOG_EVERY_S:
            self._since_s = self._since_s or now_s
            self._logged_s = now_s
            log.warning("waiting for a storage, %.0f s so far: %s", now_s - self._since_s, reason)


class CountingListener(Listener):
    """Listener that counts heartbeats, including those of an outage. It also logs outages.

    Args:
        count: its `value` is incremented at each heartbeat; it may be in shared memory.
    """

    def __init__(self, count: ctypes.c_uint64):
        super().__init__()
        self._count = count

    def progress(self) -> None:
        self._count.value += 1

    def outage(self, reason: str) -> None:
        self._count.value += 1
        super().outage(reason)


_listener: ContextVar[Listener] = ContextVar("listener", default=Listener())  # noqa: B039 - it is never changed


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Send the heartbeats of this thread to a listener inside the block."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


@contextmanager
def at_storage(limit_s: float) -> Iterator[None]:
    """Mark a read of a sample's bytes; it times out after `limit_s` without progress."""
    listener = _listener.get()
    listener.storage_read(limit_s)
    try:
        yield
    finally:
        listener.storage_read(None)


def progress() -> None:
    """Report that a piece of the work is done."""
    _listener.get().progress()


def waiting_for_storage(reason: str) -> None:
    """Report an outage and its reason; an empty reason ends the outage."""
    _listener.get().outage(reason)
