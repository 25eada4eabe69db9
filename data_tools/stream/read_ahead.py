"""Read-ahead: threads read the bytes of the next samples while the current one is decoded.

    ahead = ReadAhead(16)
    ahead.plan(requests)  # in the order of use
    with reading_ahead(ahead):
        ...  # `take` returns the bytes of a planned sample

The order of the samples is known, so the batches do not depend on the read-ahead. A read that fails is
repeated by the caller of `take`, which then handles its error as without read-ahead.
"""

import threading
import weakref
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from queue import SimpleQueue

from kinemae.data_tools import heartbeat

_MAX_BYTES = 64 << 20  # of all samples that were read and not taken, unless it is a single one
_POLL_S = 0.2


@dataclass(frozen=True, kw_only=True)
class Request:
    """A read that will be needed.

    Attributes:
        key: identifies the bytes, for `take`.
        length: their number.
        read: reads them; called in a thread.
    """

    key: Hashable
    length: int
    read: Callable[[], bytes]


class _Read(heartbeat.Listener):
    """A started read; it receives the heartbeats of its thread."""

    def __init__(self, request: Request):
        super().__init__(lambda reason: None)
        self.request = request
        self.done = threading.Event()
        self.events = 0
        self.video: bytes | None = None
        self.is_dropped = False

    def progress(self) -> None:
        self.events += 1

    def run(self) -> None:
        try:
            if not self.is_dropped:
                with heartbeat.listening(self):
                    self.video = self.request.read()
        except Exception:  # `take` returns None, and its caller gets the error of its own read
            self.video = None
        finally:
            self.done.set()


class ReadAhead:
    """Reads of the next samples, in daemon threads: a read that blocks must not delay the end of a process.

    Args:
        depth: maximum number of samples that are read or wait for `take`; 0 reads nothing ahead.
    """

    def __init__(self, depth: int, *, max_bytes: int = _MAX_BYTES):
        self.depth = depth
        self._max_bytes = max_bytes
        self._planned: deque[Request] = deque()
        self._started: deque[_Read] = deque()
        self._queue: SimpleQueue[_Read | None] = SimpleQueue()
        self._threads = 0
        self._ended = weakref.finalize(self, self._queue.put, None)

    @property
    def wants_more(self) -> bool:
        """True if fewer samples than `depth` are known."""
        return len(self._planned) + len(self._started) < self.depth

    def plan(self, requests: Iterable[Request]) -> None:
        """Add reads, in the order in which `take` will be called."""
        if self.depth:
            self._planned.extend(requests)
            self._start_reads()

    def take(self, key: Hashable) -> bytes | None:
        """Wait for the bytes of a planned sample; None if it was not planned or could not be read.

        Samples that were planned before it are dropped.
        """
        place = next((place for place, read in enumerate(self._started) if read.request.key == key), None)
        if place is None:
            return None
        for _ in range(place):
            self._started.popleft().is_dropped = True
        read, events = self._started.popleft(), 0
        self._start_reads()
        while not read.done.wait(_POLL_S):
            if read.events != events:
                events = read.events
                heartbeat.progress()
        return read.video

    def close(self) -> None:
        """End the threads after their current reads."""
        self._planned.clear()
        for read in self._started:
            read.is_dropped = True
        self._ended()

    def _start_reads(self) -> None:
        held = sum(read.request.length for read in self._started)
        while self._planned and len(self._started) < self.depth:
            held += self._planned[0].length
            if self._started and held > self._max_bytes:
                return
            read = _Read(self._planned.popleft())
            self._started.append(read)
            if self._threads < len(self._started):
                self._threads += 1
                threading.Thread(target=_serve, args=(self._queue,), daemon=True).start()
            self._queue.put(read)


def _serve(queue: "SimpleQueue[_Read | None]") -> None:
    while (read := queue.get()) is not None:
        read.run()
        del read
    queue.put(None)  # for the next thread


_active: ContextVar[ReadAhead | None] = ContextVar("read_ahead", default=None)


@contextmanager
def reading_ahead(ahead: ReadAhead) -> Iterator[None]:
    """Let `take` of this module use a read-ahead inside the block, in this thread."""
    token = _active.set(ahead)
    try:
        yield
    finally:
        _active.reset(token)


def take(key: Hashable) -> bytes | None:
    """See `ReadAhead.take`; None without an active read-ahead."""
    ahead = _active.get()
    return None if ahead is None else ahead.take(key)
