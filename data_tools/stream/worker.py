"""One worker of the crew: what its process does, and the main process's handle on it."""

import ctypes
import json
import signal
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.context import BaseContext
from multiprocessing.sharedctypes import RawValue
from socket import socket
from typing import Any, Generic, Protocol, TypeVar

import torch

from kinemae.data_tools import heartbeat
from kinemae.data_tools.stream.shared_buffers import (
    MOST_BYTES,
    Receiver,
    Sender,
    SharedBuffer,
    from_bytes,
    socket_pair,
    to_bytes,
)
from kinemae.data_tools.stream.worker_setup import block_stop_signals, exit_with_parent, stop_signals_blocked

Item = TypeVar("Item", covariant=True)

_GONE_S = 1.0  # how long a killed process is waited for; one that hangs in a network disk takes longer
_MOST_KEY_BYTES = 4096
_MOST_REASON_BYTES = 1024
_SHORTEST_S = 1e-3


class ItemReader(Protocol, Generic[Item]):
    """What a crew reads: items by number, each a function of its number alone."""

    def __len__(self) -> int: ...

    def read(self, number: int, *, quarantined: Mapping[str, str], reading: Callable[[str], None]) -> Item:
        """One item.

        Args:
            quarantined: keys of samples that are not to be touched, and why.
            reading: told the key of each sample right before it is touched.
        """


class WorkerStatus(ctypes.Structure):
    """What a worker is at, in memory that the main process sees and the worker alone writes.

    Attributes:
        events: counted up with everything that begins or ends, so a worker whose count stands still is stuck.
        samples: counted up with every sample.
        storage_s: limit without progress while the bytes of a sample are read (above 0); 0 otherwise.
        key: of the sample that is being read; empty in between.
        outage: the reason of a storage outage; empty without one.
    """

    _fields_ = [
        ("events", ctypes.c_uint64),
        ("samples", ctypes.c_uint64),
        ("storage_s", ctypes.c_double),
        ("key", ctypes.c_char * _MOST_KEY_BYTES),
        ("outage", ctypes.c_char * _MOST_REASON_BYTES),
    ]


@dataclass(frozen=True)
class WorkerError:
    """An error in a worker, on its way to the main process."""

    error: Exception
    trace: str
    key: str

    def reraise(self) -> None:
        """Raise the error here, with the worker's traceback as its cause and the sample as a note."""
        if self.key:
            self.error.add_note(f"in a loader worker, at sample {self.key}")
        raise self.error from RuntimeError(f"in a loader worker:\n{self.trace}")


class Worker(Generic[Item]):
    """A worker process.

    Attributes:
        socket: can be read when there is an item and when the process is gone.
        given: numbers of the items that it has been asked for and has not delivered.
        quiet_s: how long the main process has waited without seeing it do anything.
    """

    def __init__(self, pickled: bytes, context: BaseContext):
        self.given: list[int] = []
        self.quiet_s = 0.0
        self.record = RawValue(WorkerStatus)
        self._events = 0
        self.socket, theirs = socket_pair()
        self._receiver = Receiver(self.socket)
        self.process = context.Process(  # type: ignore[attr-defined]
            target=work, args=(pickled, theirs, self.record), daemon=True, name="kinemae-loader"
        )
        with stop_signals_blocked():
            self.process.start()
        theirs.close()

    @property
    def key(self) -> str:
        """The sample that is, or was, being read; empty for none."""
        return self.record.key.decode(errors="replace")

    @property
    def outage(self) -> str:
        """The reason of a storage outage; empty without one."""
        return self.record.outage.decode(errors="replace")

    @property
    def storage_s(self) -> float:
        """Limit without progress of the current read of a sample's bytes; 0 if there is no read."""
        return self.record.storage_s

    def give(self, number: int, quarantined: Mapping[str, str]) -> None:
        """Ask for an item. A process that is gone shows itself in `take`."""
        self.given.append(number)
        returned = [self._receiver.free.pop() for _ in range(len(self._receiver.free))]
        try:
            self.socket.send(json.dumps([number, quarantined, returned]).encode())
        except (BrokenPipeError, ConnectionResetError):
            return

    def take(self) -> tuple[int, Any]:
        """The number of an item and the item, or a `WorkerError` in its place.

        Raises:
            EOFError: the process is gone, and all that it delivered has been taken.
        """
        try:
            number, item = self._receiver.receive()
        except ConnectionResetError as error:
            raise EOFError from error
        self.given.remove(number)
        return number, item

    def watch(self, waited_s: float) -> float:
        """Note that it was waited for and return how long nothing has been seen of it."""
        if self.record.events != self._events or not self.given:
            self._events, self.quiet_s = self.record.events, 0.0
        else:
            self.quiet_s += waited_s
        return self.quiet_s

    def end(self) -> str:
        """Kill it where it still runs, and say how it ended."""
        self.process.kill()
        self.process.join(_GONE_S)
        code = self.process.exitcode
        if code is None or code >= 0:
            return f"left with exit code {code}"
        return f"was killed by {signal.Signals(-code).name}"

    def close(self) -> None:
        self.socket.close()


def work(pickled: bytes, tasks: socket, record: WorkerStatus) -> None:
    """The life of a worker: read what is asked for until the main process is gone."""
    block_stop_signals()
    exit_with_parent()
    torch.set_num_threads(1)
    sender = Sender(tasks)
    reader = _Reader(pickled, record, sender)
    with heartbeat.listening(_Noting(record)):
        while message := tasks.recv(MOST_BYTES):
            number, quarantined, returned = json.loads(message)
            record.events += 1
            sender.take_back(returned)
            parcel = reader.answer(number, quarantined)
            try:
                sender.send(number, parcel)
            except BrokenPipeError:
                return
            record.events += 1


class _Noting(heartbeat.Listener):
    """Writes the heartbeats of a worker into its record."""

    def __init__(self, record: WorkerStatus):
        super().__init__()
        self._record = record

    def progress(self) -> None:
        self._record.events += 1

    def storage_read(self, limit_s: float | None) -> None:
        self._record.storage_s = 0.0 if limit_s is None else max(limit_s, _SHORTEST_S)
        self._record.outage = b""

    def outage(self, reason: str) -> None:
        self._record.events += 1
        self._record.outage = reason.encode()[: _MOST_REASON_BYTES - 1]


class _Reader:
    def __init__(self, pickled: bytes, record: WorkerStatus, sender: Sender):
        self._pickled = pickled
        self._sender = sender
        self._record = record
        self._readable: ItemReader[Any] | None = None

    def answer(self, number: int, quarantined: Mapping[str, str]) -> SharedBuffer:
        """The item, or the failure to read it."""
        try:
            if self._readable is None:  # here and not at the start, so that an error in it is reported too
                self._readable = from_bytes(self._pickled)
                heartbeat.progress()
            item = self._readable.read(number, quarantined=quarantined, reading=self._note)
            self._record.key = b""
            return self._sender.pack(item)
        except Exception as error:  # the border to the main process, which raises it again
            key = self._record.key.decode(errors="replace")
            self._record.key = b""
            return self._sender.pack(WorkerError(_portable(error), traceback.format_exc(), key))

    def _note(self, key: str) -> None:
        self._record.key = b""  # should the process die right here, no other sample is blamed
        self._record.key = key.encode()[: _MOST_KEY_BYTES - 1]
        self._record.samples += 1
        self._record.events += 1


def _portable(error: Exception) -> Exception:
    """The error itself where it survives pickling, and else one that says the same."""
    try:
        from_bytes(to_bytes(error))
    except Exception:  # whatever a foreign error's own pickling raises
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
