"""A crew of loader processes: items in order, whoever reads them, and whoever dies or hangs meanwhile.

    for item in WorkerPool(readable, workers=4, timeout_s=120.0, preload=[]): ...

The main process asks for items by number and keeps no thread for it: it looks after the workers whenever it
comes for an item. A worker that dies, or does nothing for `timeout_s` while the main process waits, is
replaced; the sample it was at is quarantined for as long as the crew lives, and its item is read again.
A storage that is down quarantines no sample: workers report it while they wait. The main process raises
StorageUnavailable when their wait times out, or when a read of bytes makes no progress.
"""

import atexit
import signal
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Generic, TypeVar

from kinemae.data_tools import heartbeat
from kinemae.data_tools.command import DataError, log
from kinemae.data_tools.storage.location import StorageUnavailable
from kinemae.data_tools.stream.shared_buffers import to_bytes
from kinemae.data_tools.stream.worker import ItemReader, Worker, WorkerError
from kinemae.data_tools.stream.worker_setup import worker_context

Item = TypeVar("Item")

_PREFETCH = 2  # items that a worker holds ready in memory
_MOST_DEATHS = 10  # in one run; each costs a sample, and more than that are no accident
_START_S = 600.0  # importing torch from a busy network disk takes minutes
_TICK_S = 1.0
_SILENT_S = 10.0  # a read of bytes without progress for so long counts as an outage


class WorkerPool(Iterator[Item], Generic[Item]):
    """Iterates over all items of a readable in order; the workers start at once.

    Args:
        workers: number of processes, at least 1.
        timeout_s: how long the main process waits for a worker that shows no sign of life.
        preload: modules that are imported once for all workers.
        on_outage: called about once a second with the reason while the next item waits for a storage, and
            with an empty text at the end of the wait; may raise. The default logs.

    Raises:
        ValueError: the readable cannot be sent to a process.
        DataError: too many workers died, or one did before it had read anything.
        StorageUnavailable: a storage was down for longer than the index's `outage_s`.
    """

    def __init__(
        self,
        readable: ItemReader[Item],
        *,
        workers: int,
        timeout_s: float,
        preload: Sequence[str],
        on_outage: Callable[[str], None] | None = None,
    ):
        self.quarantined: dict[str, str] = {}
        self._on_outage = on_outage or heartbeat.Listener().outage
        self._has_outage = False
        self._context = worker_context([*preload, "kinemae.data_tools.stream.worker"])
        self._pickled = _pickled(readable, workers)
        self._timeout_s = timeout_s
        self._length = len(readable)
        self._next = 0  # the item to hand out
        self._unread = 0  # the first item that nobody has been asked for
        self._lost: list[int] = []  # items that died with their workers
        self._arrived: dict[int, Item] = {}
        self._deaths = 0
        self._processes: set[BaseProcess] = set()
        self._is_shut_down = threading.Event()
        weakref.finalize(self, _shutdown, self._processes, self._is_shut_down)
        # At exit multiprocessing would send them SIGTERM, which they do not take, and wait without end: so
        # this has to come before it, which weakref does not promise.
        self._at_exit = atexit.register(partial(_shutdown, self._processes, self._is_shut_down))
        self._members: list[Worker[Item]] = []
        try:
            for _ in range(min(workers, self._length)):
                self._members.append(self._start_worker())
            self._give_work()
        except BaseException:
            self.close()
            raise

    def __next__(self) -> Item:
        if self._next == self._length:
            raise StopIteration
        try:
            self._look_after(wait_s=0.0)
            while self._next not in self._arrived:
                self._look_after(wait_s=min(_TICK_S, self._timeout_s / 10))
                self._tell_outage()
            item = self._arrived.pop(self._next)
            self._next += 1
            self._give_work()
        except BaseException:
            self.close()
            raise
        if self._next == self._length:
            self.close()
        return item

    @property
    def samples_in_progress(self) -> list[str]:
        """Keys of the samples that workers are at. Any thread may ask."""
        return [member.key for member in list(self._members) if member.key]

    def shutdown(self) -> None:
        """Kill the workers, which have nothing to save. Any thread may call this while another iterates."""
        _shutdown(self._processes, self._is_shut_down)

    def close(self) -> None:
        """End the workers and let go of what they have read."""
        atexit.unregister(self._at_exit)
        self.shutdown()
        for member in self._members:
            member.close()
        self._members.clear()
        self._arrived.clear()
        self._next = self._length

    def _start_worker(self) -> Worker[Item]:
        member: Worker[Item] = Worker(self._pickled, self._context)
        self._processes.add(member.process)
        if self._is_shut_down.is_set():
            member.process.kill()
        return member

    def _give_work(self) -> None:
        """Ask for the next items, as many as the prefetch allows, of whoever has the least to do."""
        end = min(self._next + _PREFETCH * len(self._members), self._length)
        while self._lost or self._unread < end:
            member = min(self._members, key=lambda member: len(member.given))
            if len(member.given) == _PREFETCH:
                return
            if self._lost:
                member.give(self._lost.pop(0), self.quarantined)
            else:
                member.give(self._unread, self.quarantined)
                self._unread += 1

    def _look_after(self, *, wait_s: float) -> None:
        """Take what has arrived, wait for it where asked to, and replace who is gone or stuck."""
        if self._is_shut_down.is_set():
            raise RuntimeError("the loader workers have been dismissed: nothing more can be read")
        begin_s = time.monotonic()
        ready = wait([member.socket for member in self._members], wait_s)
        # No more than was meant: a job that was itself suspended does not hold it against its workers.
        waited_s = min(time.monotonic() - begin_s, wait_s)
        for place, member in enumerate(self._members):
            if member.socket in ready:
                self._take(place, member)
            elif member.watch(waited_s) > self._patience_s(member):
                if member.storage_s:
                    raise StorageUnavailable(
                        f"sample {member.key}: the read of its bytes did nothing for "
                        f"{self._patience_s(member):g} s; fix: check the disk, the mount and the network"
                    )
                member.end()
                self._replace(place, member, f"did nothing for data.timeout_s={self._timeout_s:g} seconds")

    def _patience_s(self, member: Worker[Item]) -> float:
        if not member.record.events:
            return max(self._timeout_s, _START_S)
        return max(self._timeout_s, member.storage_s)

    def _tell_outage(self) -> None:
        reasons = (member.outage for member in self._members)
        silent = (
            f"the read of the bytes of sample {member.key} has been silent for {member.quiet_s:.0f} s"
            for member in self._members
            if member.storage_s and member.quiet_s > _SILENT_S
        )
        reason = next((reason for reason in (*reasons, *silent) if reason), "")
        if reason or self._has_outage:
            self._has_outage = bool(reason)
            self._on_outage(reason)

    def _take(self, place: int, member: Worker[Item]) -> None:
        try:
            number, item = member.take()
        except EOFError:
            if not self._is_shut_down.is_set():
                self._replace(place, member, member.end())
            return
        if isinstance(item, WorkerError):
            item.reraise()
        self._arrived[number] = item
        self._give_work()

    def _replace(self, place: int, member: Worker[Item], how: str) -> None:
        """A new worker in the place of one that is gone, its items asked for again, its sample left out."""
        self._processes.discard(member.process)
        member.close()
        self._deaths += 1
        if member.key:
            self._quarantine(member.key, how)
        elif member.record.samples == 0:
            raise DataError(
                f"a loader worker {how} before it had read anything: what it said stands above; "
                "data.num_workers=0 reads in the main process"
            )
        else:
            log.warning("a loader worker %s between two samples: a new one takes its place", how)
        if self._deaths > _MOST_DEATHS:
            raise DataError(
                f"{self._deaths} loader workers died or hung, the last one {how}: too many for an accident. "
                f"Samples they were at: {', '.join(sorted(self.quarantined)) or 'none'}. "
                f"{signal.SIGKILL.name} means too little memory as a rule: lower data.num_workers"
            )
        self._lost = sorted(self._lost + member.given)
        self._members[place] = self._start_worker()
        self._give_work()

    def _quarantine(self, key: str, how: str) -> None:
        if key not in self.quarantined:
            self.quarantined[key] = f"a loader worker {how} while it read the sample, earlier in this run"
            log.warning(
                "a loader worker %s while it read sample %s: it is left out for the rest of this run, "
                "and a new worker reads on", how, key,
            )  # fmt: skip


def _shutdown(processes: set[BaseProcess], dismissed: threading.Event) -> None:
    dismissed.set()  # first, so that a thread which sees them die knows why
    for process in list(processes):
        process.kill()
    for process in list(processes):
        process.join(1.0)
    processes.clear()


def _pickled(readable: object, workers: int) -> bytes:
    try:
        return to_bytes(readable)
    except Exception as error:  # whatever the pickling of a part raises
        raise ValueError(
            f"data.num_workers={workers} reads in other processes, to which this stream cannot be sent "
            f"({error}): use classes and functions of a module's top level, or data.num_workers=0"
        ) from error
