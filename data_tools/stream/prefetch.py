"""A thread that prepares the next item while the last one is in use, for pinning memory."""

import queue
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, TypeVar

import torch

from kinemae.data_tools.stream.worker_pool import WorkerPool

Item = TypeVar("Item")

_TICK_S = 0.5


class Prefetcher(Iterator[Item]):
    """Fetches the next item in a thread and changes it there, while the last one is in use.

    Args:
        change: runs on the CUDA device that is current here.
    """

    def __init__(self, crew: WorkerPool[Item], change: Callable[[Item], Item]):
        self._done: queue.Queue[Item | BaseException] = queue.Queue(maxsize=1)
        self._ended = threading.Event()
        # A new thread begins on device 0, and pinning there would take memory of another process's GPU.
        device = torch.cuda.current_device() if torch.cuda.is_available() else None
        arguments = (crew, change, self._done, self._ended, device)
        threading.Thread(target=_run_ahead, args=arguments, daemon=True).start()
        weakref.finalize(self, _let_go, crew, self._ended)
        self._crew = crew

    @property
    def samples_in_progress(self) -> list[str]:
        """See `WorkerPool.samples_in_progress`."""
        return self._crew.samples_in_progress

    def __next__(self) -> Item:
        if self._ended.is_set():
            raise StopIteration
        item = self._done.get()
        if isinstance(item, BaseException):
            self._ended.set()
            raise item
        return item


def _let_go(crew: WorkerPool[Any], ended: threading.Event) -> None:
    ended.set()
    crew.shutdown()  # wakes the thread


def _run_ahead(
    crew: WorkerPool[Item],
    change: Callable[[Item], Item],
    done: "queue.Queue[Item | BaseException]",
    ended: threading.Event,
    device: int | None,
) -> None:
    def put(item: Item | BaseException) -> None:
        while not ended.is_set():
            with suppress(queue.Full):
                return done.put(item, timeout=_TICK_S)

    try:
        if device is not None:
            torch.cuda.set_device(device)
        for item in crew:
            put(change(item))
        put(StopIteration())
    except BaseException as error:  # the border to the thread that uses the items, which raises it again
        put(error)
    finally:
        crew.shutdown()
