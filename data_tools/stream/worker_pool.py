"""Worker pool of the loader: items in order, replacement of dead or stuck workers, prefetching.

    for item in WorkerPool(reader, workers=4, timeout_s=120.0, preload=[]): ...

The main process requests items by number. It has no thread for this: it checks the workers each time it needs
an item. A worker that dies, or makes no progress for `timeout_s`, is replaced. Its current sample is
quarantined for the life of the pool, and its item is read again.

An outage of a storage quarantines no sample: workers report it while they wait. The main process raises
StorageUnavailable when their wait times out, or when a read of bytes makes no progress.
"""

import atexit
import queue
import signal
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any, Generic, TypeVar

import torch

from kinemae.data_tools import heartbeat
from kinemae.data_tools.command import DataError, log
from kinemae.data_tools.storage.location import StorageUnavailable
from kinemae.data_tools.stream.shared_buffers import to_bytes
from kinemae.data_tools.stream.worker import ItemReader, SequentialReader, Worker, WorkerError
from kinemae.data_tools.stream.worker_setup import worker_context

Item = TypeVar("Item")

_PREFETCH_FACTOR = 2  # items that a worker holds ready; more if they are smaller than its read-ahead
_MAX_DEATHS, _DEATH_ITEMS = 10, 1000  # deaths of workers during this many items
_START_S = 600.0  # importing torch from a busy network disk takes minutes
_POLL_S = 1.0
_SILENT_S = 10.0  # a read of bytes without progress for so long is reported as an outage
_PUT_S = 0.5


class WorkerPool(Iterator[Item], Generic[Item]):
    """Iterate over all items of a reader in order; the workers start at once.

    Args:
        workers: number of processes, at least 1.
        timeout_s: time limit of a worker without progress while the main process waits.
        preload: modules to import once for all workers.
        on_outage: called about once a second with the reason while the next item waits for a storage, and
            with an empty text at the end of the wait; may raise. The default logs.
        read_ahead: number of samples that each worker reads ahead of the one it decodes.

    Raises:
        ValueError: the reader cannot be pickled.
        DataError: too many workers died, or one died before it read a sample.
        StorageUnavailable: a storage was down for longer than the index's `outage_s`.
    """

    def __init__(
        self,
        reader: ItemReader[Item] | SequentialReader[Item],
        *,
        workers: int,
        timeout_s: float,
        preload: Sequence[str],
        on_outage: Callable[[str], None] | None = None,
        read_ahead: int = 0,
    ):
        self.quarantined: dict[str, str] = {}
        self._on_outage = on_outage or heartbeat.Listener().outage
        self._has_outage = False
        self._context = worker_context(preload)
        self._sequential = reader if isinstance(reader, SequentialReader) else None
        self._pickled = b"" if isinstance(reader, SequentialReader) else _pickled(reader, workers)
        self._count = min(workers, len(reader))
        self._timeout_s = timeout_s
        self._length = len(reader)
        self._read_ahead = read_ahead
        samples = 1
        if read_ahead and self._length and not isinstance(reader, SequentialReader):
            samples = len(reader.upcoming(0))
        self._prefetch = max(_PREFETCH_FACTOR, 1 + -(-read_ahead // max(samples, 1)))
        self._next = 0  # the item to return
        self._first_unassigned = 0
        self._lost: list[int] = []  # items of dead workers
        self._arrived: dict[int, Item] = {}
        self._deaths: deque[int] = deque(maxlen=_MAX_DEATHS + 1)  # the next item at each
        self._processes: set[BaseProcess] = set()
        self._is_shut_down = threading.Event()
        weakref.finalize(self, _shutdown, self._processes, self._is_shut_down)
        # At exit, multiprocessing would send SIGTERM, which the workers block, and wait forever. atexit runs
        # before that; weakref does not guarantee it.
        self._at_exit = atexit.register(partial(_shutdown, self._processes, self._is_shut_down))
        self._workers: list[Worker[Item]] = []
        try:
            for place in range(self._count):
                self._workers.append(self._start_worker(place))
            self._assign_items()
        except BaseException:
            self.close()
            raise

    def __next__(self) -> Item:
        if self._next == self._length:
            raise StopIteration
        try:
            self._poll(wait_s=0.0)
            while self._next not in self._arrived:
                self._poll(wait_s=min(_POLL_S, self._timeout_s / 10))
                self._report_outage()
            item = self._arrived.pop(self._next)
            self._next += 1
            self._assign_items()
        except BaseException:
            self.close()
            raise
        if self._next == self._length:
            self.close()
        return item

    @property
    def samples_in_progress(self) -> list[str]:
        """Keys of the samples that workers read now; safe to call from any thread."""
        return [worker.key for worker in list(self._workers) if worker.key]

    def shutdown(self) -> None:
        """Kill the workers, which have nothing to save; safe to call from any thread."""
        _shutdown(self._processes, self._is_shut_down)

    def close(self) -> None:
        """Shut down and free the items that were read."""
        atexit.unregister(self._at_exit)
        self.shutdown()
        for worker in self._workers:
            worker.close()
        self._workers.clear()
        self._arrived.clear()
        self._next = self._length

    def _start_worker(self, place: int) -> Worker[Item]:
        pickled = self._pickled
        if self._sequential is not None:
            pickled = _pickled(self._sequential.for_worker(place, self._count), self._count)
        worker: Worker[Item] = Worker(pickled, self._context, self._read_ahead, self.quarantined)
        self._processes.add(worker.process)
        if self._is_shut_down.is_set():
            worker.process.kill()
        return worker

    def _assign_items(self) -> None:
        """Assign the next items, within the prefetch limit, to the workers with the fewest items.

        Streams assign them to the workers in turn.
        """
        end = min(self._next + self._prefetch * len(self._workers), self._length)
        while self._lost or self._first_unassigned < end:
            number = self._lost[0] if self._lost else self._first_unassigned
            worker = min(self._workers, key=lambda worker: len(worker.assigned))
            if self._sequential is not None:
                worker = self._workers[number % self._count]
            if len(worker.assigned) == self._prefetch:
                return
            worker.submit(number, self.quarantined)
            if self._lost:
                self._lost.pop(0)
            else:
                self._first_unassigned += 1

    def _poll(self, *, wait_s: float) -> None:
        """Receive items, wait for at most `wait_s`, and replace dead or stuck workers."""
        if self._is_shut_down.is_set():
            raise RuntimeError("the loader workers have been shut down: nothing more can be read")
        begin_s = time.monotonic()
        ready = wait([worker.socket for worker in self._workers], wait_s)
        # At most `wait_s`: the time during which the job itself was suspended does not count.
        waited_s = min(time.monotonic() - begin_s, wait_s)
        for place, worker in enumerate(self._workers):
            if worker.socket in ready:
                self._receive(place, worker)
            elif worker.idle_after(waited_s) > self._limit_s(worker):
                if worker.storage_s:
                    raise StorageUnavailable(
                        f"sample {worker.key}: the read of its bytes did nothing for "
                        f"{self._limit_s(worker):g} s; fix: check the disk, the mount and the network"
                    )
                worker.kill()
                self._replace(place, worker, f"did nothing for data.timeout_s={self._timeout_s:g} seconds")

    def _limit_s(self, worker: Worker[Item]) -> float:
        if not worker.status.events:
            return max(self._timeout_s, _START_S)
        return max(self._timeout_s, worker.storage_s)

    def _report_outage(self) -> None:
        reasons = (worker.outage for worker in self._workers)
        silent = (
            f"the read of the bytes of sample {worker.key} has been silent for {worker.idle_s:.0f} s"
            for worker in self._workers
            if worker.storage_s and worker.idle_s > _SILENT_S
        )
        reason = next((reason for reason in (*reasons, *silent) if reason), "")
        if reason or self._has_outage:
            self._has_outage = bool(reason)
            self._on_outage(reason)

    def _receive(self, place: int, worker: Worker[Item]) -> None:
        try:
            number, item = worker.receive()
        except EOFError:
            if not self._is_shut_down.is_set():
                self._replace(place, worker, worker.kill())
            return
        if isinstance(item, WorkerError):
            item.reraise()
        if self._sequential is not None:
            self._sequential.received(item)
        self._arrived[number] = item
        self._assign_items()

    def _replace(self, place: int, worker: Worker[Item], cause: str) -> None:
        """Start a new worker, request the items of the old one again and quarantine its sample."""
        self._processes.discard(worker.process)
        worker.close()
        self._deaths.append(self._next)
        if worker.key:
            self._quarantine(worker.key, cause)
        elif worker.status.samples == 0:
            raise DataError(
                f"a loader worker {cause} before it had read anything; see its output above; "
                "data.num_workers=0 reads in the main process"
            )
        else:
            log.warning("a loader worker %s between two samples: a new one takes its place", cause)
        if len(self._deaths) > _MAX_DEATHS and self._next < self._deaths[0] + _DEATH_ITEMS:
            raise DataError(
                f"{len(self._deaths)} loader workers died or hung, the last one {cause}; samples they read: "
                f"{', '.join(sorted(self.quarantined)) or 'none'}; fix: lower data.num_workers, because "
                f"{signal.SIGKILL.name} usually means too little memory"
            )
        self._lost = sorted(self._lost + worker.assigned)
        self._workers[place] = self._start_worker(place)
        self._assign_items()

    def _quarantine(self, key: str, cause: str) -> None:
        if key not in self.quarantined:
            self.quarantined[key] = f"a loader worker {cause} while it read the sample, earlier in this run"
            log.warning(
                "a loader worker %s while it read sample %s: it is skipped for the rest of this run, "
                "and a new worker continues", cause, key,
            )  # fmt: skip


class Prefetcher(Iterator[Item]):
    """Fetch and transform the next item in a thread while the last one is in use, for pinning memory.

    Args:
        transform: runs on the current CUDA device.
    """

    def __init__(self, pool: WorkerPool[Item], transform: Callable[[Item], Item]):
        self._done: queue.Queue[Item | BaseException] = queue.Queue(maxsize=1)
        self._ended = threading.Event()
        # A new thread starts on device 0, and pinning there would take memory of another process's GPU.
        device = torch.cuda.current_device() if torch.cuda.is_available() else None
        arguments = (pool, transform, self._done, self._ended, device)
        threading.Thread(target=_prefetch, args=arguments, daemon=True).start()
        weakref.finalize(self, _end_prefetch, pool, self._ended)
        self._pool = pool

    @property
    def samples_in_progress(self) -> list[str]:
        """See `WorkerPool.samples_in_progress`."""
        return self._pool.samples_in_progress

    def __next__(self) -> Item:
        if self._ended.is_set():
            raise StopIteration
        item = self._done.get()
        if isinstance(item, BaseException):
            self._ended.set()
            raise item
        return item


def _end_prefetch(pool: WorkerPool[Any], ended: threading.Event) -> None:
    ended.set()
    pool.shutdown()  # wakes the thread


def _prefetch(
    pool: WorkerPool[Item],
    transform: Callable[[Item], Item],
    done: "queue.Queue[Item | BaseException]",
    ended: threading.Event,
    device: int | None,
) -> None:
    def put(item: Item | BaseException) -> None:
        while not ended.is_set():
            with suppress(queue.Full):
                return done.put(item, timeout=_PUT_S)

    try:
        if device is not None:
            torch.cuda.set_device(device)
        for item in pool:
            put(transform(item))
        put(StopIteration())
    except BaseException as error:  # raised again in the thread that uses the items
        put(error)
    finally:
        pool.shutdown()


def _shutdown(processes: set[BaseProcess], is_shut_down: threading.Event) -> None:
    is_shut_down.set()  # first, so that other threads can tell this from a crash of the workers
    for process in list(processes):
        process.kill()
    for process in list(processes):
        process.join(1.0)
    processes.clear()


def _pickled(reader: object, workers: int) -> bytes:
    try:
        pickled = to_bytes(reader)
        main = sys.modules["__main__"]
        if b"__main__" in pickled and not (main.__spec__ or getattr(main, "__file__", None)):
            raise ValueError("a class or function of a notebook or an interactive session")
    except Exception as error:  # pickling a component may raise anything
        raise ValueError(
            f"{workers} loader workers: expected classes and functions of the top level of a script or a "
            f"module, got: {error}; fix: define them there, or read without workers, data.num_workers=0 in a "
            "config and workers=0 in Python"
        ) from error
    return pickled
