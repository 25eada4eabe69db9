"""Worker of the pool: the code of its process, and the main process's handle of it."""

import ctypes
import json
import signal
import traceback
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from multiprocessing.context import BaseContext
from multiprocessing.sharedctypes import RawValue
from socket import MSG_DONTWAIT, socket
from typing import Any, Generic, Protocol, TypeVar

import torch

from kinemae.data_tools import heartbeat
from kinemae.data_tools.stream.read_ahead import ReadAhead, Request, reading_ahead
from kinemae.data_tools.stream.shared_buffers import (
    MAX_MESSAGE_BYTES,
    Receiver,
    Sender,
    SharedBuffer,
    from_bytes,
    socket_pair,
    to_bytes,
)
from kinemae.data_tools.stream.worker_setup import (
    block_stop_signals,
    exit_with_parent,
    main_module_hidden,
    stop_signals_blocked,
)

Item = TypeVar("Item", covariant=True)
AnyItem = TypeVar("AnyItem")

_JOIN_S = 1.0  # a killed process that hangs in a network disk takes longer
_MAX_KEY_BYTES = 4096
_MAX_REASON_BYTES = 1024
_MIN_STORAGE_S = 1e-3


class ItemReader(Protocol, Generic[Item]):
    """The data set of a worker pool: items by number; each item is a function of its number alone."""

    def __len__(self) -> int: ...

    def read(self, number: int, *, quarantined: Mapping[str, str], on_sample: Callable[[str], None]) -> Item:
        """Read an item.

        Args:
            quarantined: keys of samples that must not be read, with the reasons.
            on_sample: to be called with the key of each sample before it is read.
        """

    def upcoming(self, number: int) -> Sequence[Request]:
        """The reads of an item's samples in order; only called with a read-ahead."""


class SequentialReader(ABC, Generic[AnyItem]):
    """The data set of a pool whose workers read streams: worker w of W reads the items w, w + W, ..."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def for_worker(self, worker: int, workers: int) -> ItemReader[AnyItem]:
        """The reader of one worker; for a worker that replaces another one, behind the received items."""

    @abstractmethod
    def received(self, item: AnyItem) -> None:
        """Note the position of an item's worker in its stream."""


class WorkerStatus(ctypes.Structure):
    """Status of a worker in shared memory; only the worker writes it.

    Attributes:
        events: counter of all beginnings and ends; a worker whose counter does not change is stuck.
        samples: counter of samples.
        storage_s: limit without progress while the bytes of a sample are read (above 0); 0 otherwise.
        key: key of the sample that is being read; empty in between.
        outage: the reason of a storage outage; empty without one.
    """

    _fields_ = [
        ("events", ctypes.c_uint64),
        ("samples", ctypes.c_uint64),
        ("storage_s", ctypes.c_double),
        ("key", ctypes.c_char * _MAX_KEY_BYTES),
        ("outage", ctypes.c_char * _MAX_REASON_BYTES),
    ]


@dataclass(frozen=True)
class WorkerError:
    """An exception of a worker, sent to the main process."""

    error: Exception
    trace: str
    key: str

    def reraise(self) -> None:
        """Raise the error with the worker's traceback as its cause and the sample as a note."""
        if self.key:
            self.error.add_note(f"in a loader worker, at sample {self.key}")
        raise self.error from RuntimeError(f"in a loader worker:\n{self.trace}")


class Worker(Generic[Item]):
    """Handle of a worker process.

    Attributes:
        socket: readable when there is an item and when the process has ended.
        assigned: numbers of the requested items that have not arrived.
        idle_s: how long the main process has waited without progress of the worker.
    """

    def __init__(self, pickled: bytes, context: BaseContext, read_ahead: int, quarantined: Mapping[str, str]):
        self.assigned: list[int] = []
        self.idle_s = 0.0
        self.status = RawValue(WorkerStatus)
        self._events = 0
        self._known = len(quarantined)
        self.socket, theirs = socket_pair()
        self._receiver = Receiver(self.socket)
        self.process = context.Process(  # type: ignore[attr-defined]
            target=run_worker,
            args=(pickled, theirs, self.status, read_ahead, dict(quarantined)),
            daemon=True,
            name="kinemae-loader",
        )
        with stop_signals_blocked(), nullcontext() if b"__main__" in pickled else main_module_hidden():
            self.process.start()
        theirs.close()

    @property
    def key(self) -> str:
        """Key of the sample that is, or was, being read; empty for none."""
        return self.status.key.decode(errors="replace")

    @property
    def outage(self) -> str:
        """The reason of a storage outage; empty without one."""
        return self.status.outage.decode(errors="replace")

    @property
    def storage_s(self) -> float:
        """Limit without progress of the current read of a sample's bytes; 0 if there is no read."""
        return self.status.storage_s

    def submit(self, number: int, quarantined: Mapping[str, str]) -> None:
        """Request an item; if the process has ended, `receive` reports it.

        Args:
            quarantined: of the pool, in the order in which they were added; new ones are sent.
        """
        self.assigned.append(number)
        new = dict(islice(quarantined.items(), self._known, None))
        self._known = len(quarantined)
        returned = [self._receiver.free.pop() for _ in range(len(self._receiver.free))]
        try:
            self.socket.send(json.dumps([number, new, returned]).encode())
        except (BrokenPipeError, ConnectionResetError):
            return

    def receive(self) -> tuple[int, Any]:
        """Receive the number of an item and the item, or a `WorkerError` in its place.

        Raises:
            EOFError: the process has ended, and all its items have been received.
        """
        try:
            number, item = self._receiver.receive()
        except ConnectionResetError as error:
            raise EOFError from error
        self.assigned.remove(number)
        return number, item

    def idle_after(self, waited_s: float) -> float:
        """Update and return `idle_s` after a wait of the main process."""
        if self.status.events != self._events or not self.assigned:
            self._events, self.idle_s = self.status.events, 0.0
        else:
            self.idle_s += waited_s
        return self.idle_s

    def kill(self) -> str:
        """Kill the process if it still runs; return how it ended."""
        self.process.kill()
        self.process.join(_JOIN_S)
        code = self.process.exitcode
        if code is None or code >= 0:
            return f"left with exit code {code}"
        return f"was killed by {signal.Signals(-code).name}"

    def close(self) -> None:
        self.socket.close()


def run_worker(
    pickled: bytes, requests: socket, status: WorkerStatus, read_ahead: int, quarantined: dict[str, str]
) -> None:
    """Read requested items until the main process ends.

    Args:
        read_ahead: see `ReadAhead`.
        quarantined: at the start; requests add further ones.
    """
    block_stop_signals()
    exit_with_parent()
    torch.set_num_threads(1)
    sender = Sender(requests)
    ahead = ReadAhead(read_ahead)
    loop = _WorkerLoop(pickled, status, sender, ahead)
    with heartbeat.listening(_StatusListener(status)), reading_ahead(ahead):
        for number, new, returned in _received(requests, loop):
            status.events += 1
            quarantined.update(new)
            sender.take_back(returned)
            item = loop.read(number, quarantined)
            try:
                sender.send(number, item)
            except BrokenPipeError:
                return
            status.events += 1


def _received(requests: socket, loop: "_WorkerLoop") -> Iterator[list[Any]]:
    """Requests in order; those that have arrived are announced to the loop before the first is processed."""
    waiting: deque[list[Any]] = deque()
    while True:
        try:
            message = requests.recv(MAX_MESSAGE_BYTES, MSG_DONTWAIT if waiting else 0)
        except BlockingIOError:
            yield waiting.popleft()
            continue
        if not message:
            return
        waiting.append(json.loads(message))
        loop.announced.append(waiting[-1][0])


class _StatusListener(heartbeat.Listener):
    """Writes the heartbeats of a worker to its status."""

    def __init__(self, status: WorkerStatus):
        super().__init__()
        self._status = status

    def progress(self) -> None:
        self._status.events += 1

    def storage_read(self, limit_s: float | None) -> None:
        self._status.storage_s = 0.0 if limit_s is None else max(limit_s, _MIN_STORAGE_S)
        self._status.outage = b""

    def outage(self, reason: str) -> None:
        self._status.events += 1
        self._status.outage = reason.encode()[: _MAX_REASON_BYTES - 1]


class _WorkerLoop:
    def __init__(self, pickled: bytes, status: WorkerStatus, sender: Sender, ahead: ReadAhead):
        self.announced: deque[int] = deque()
        self._ahead = ahead
        self._pickled = pickled
        self._sender = sender
        self._status = status
        self._reader: ItemReader[Any] | None = None

    def read(self, number: int, quarantined: Mapping[str, str]) -> SharedBuffer:
        """Read an item, or return the error."""
        try:
            if self._reader is None:  # here and not at the start, so that its errors are reported
                self._reader = from_bytes(self._pickled)
                heartbeat.progress()
            self._plan_reads(self._reader)
            item = self._reader.read(number, quarantined=quarantined, on_sample=self._on_sample)
            self._status.key = b""
            return self._sender.pack(item)
        except Exception as error:  # the main process raises it again
            key = self._status.key.decode(errors="replace")
            self._status.key = b""
            return self._sender.pack(WorkerError(picklable(error), traceback.format_exc(), key))

    def _plan_reads(self, reader: ItemReader[Any]) -> None:
        while self.announced:
            number = self.announced.popleft()
            if self._ahead.depth:
                self._ahead.plan(reader.upcoming(number))

    def _on_sample(self, key: str) -> None:
        self._status.key = b""  # if the process dies right here, no other sample is quarantined
        self._status.key = key.encode()[: _MAX_KEY_BYTES - 1]
        self._status.samples += 1
        self._status.events += 1


def picklable(error: Exception) -> Exception:
    """The error itself if it can be pickled, else a RuntimeError with its text."""
    try:
        from_bytes(to_bytes(error))
    except Exception:  # the error's own pickling may raise anything
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
