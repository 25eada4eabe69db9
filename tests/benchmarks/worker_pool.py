"""Benchmark our worker pool against PyTorch's DataLoader: the cost of moving a batch from a worker.

    python -m tests.benchmarks.worker_pool [--shards SHARDS/train] [--workers 2]

"Empty" batches need no decoding and show the transport alone. With --shards real clips are read too. CPU
seconds are those of the workers and of the main process per 1000 clips. Both read the same items
alternately, several times; the best of each is printed.
"""

import argparse
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from kinemae.data_tools.index import open_index
from kinemae.data_tools.stream.batch import ClipBatch
from kinemae.data_tools.stream.loader import AugmentConfig, ClipConfig, TrainingClips
from kinemae.data_tools.stream.worker import ItemReader
from kinemae.data_tools.stream.worker_pool import WorkerPool
from kinemae.data_tools.stream.worker_setup import worker_context

ROUNDS = 3


@dataclass(frozen=True)
class Empty(ItemReader[Any]):
    """Batches like those of the loader, without decoding."""

    clips: int
    size: int
    length: int

    def __len__(self) -> int:
        return self.length

    def read(self, number: int, *, quarantined: Mapping[str, str], on_sample: Callable[[str], None]) -> Any:
        began_s = time.process_time()
        for row in range(self.clips):
            on_sample(f"sample-{row}")
        luma = torch.full((self.clips, 16, self.size, self.size), number % 256, dtype=torch.uint8)
        chroma = torch.full((self.clips, 16, 2, self.size // 2, self.size // 2), 128, dtype=torch.uint8)
        index = torch.arange(self.clips)
        return {"luma": luma, "chroma": chroma, "index": index, "pid": os.getpid(), "cpu_s": began_s}


@dataclass(frozen=True)
class Real(ItemReader[Any]):
    """Batches of real clips."""

    stream: TrainingClips
    clips: int
    length: int

    def __len__(self) -> int:
        return self.length

    def read(self, number: int, *, quarantined: Mapping[str, str], on_sample: Callable[[str], None]) -> Any:
        began_s = time.process_time()
        batch = self.stream.batch(range(number * self.clips, (number + 1) * self.clips), on_sample=on_sample)
        return {"batch": batch, "pid": os.getpid(), "cpu_s": began_s}


class AsDataset(Dataset[Any]):
    def __init__(self, items: ItemReader[Any]):
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, number: int) -> Any:
        return self.items.read(number, quarantined={}, on_sample=lambda key: None)


def identity(item: Any) -> Any:
    return item


def worker_pool(items: ItemReader[Any], workers: int) -> Iterator[Any]:
    return WorkerPool(items, workers=workers, timeout_s=120.0, preload=[__name__])


def data_loader(items: ItemReader[Any], workers: int) -> Iterator[Any]:
    loader: DataLoader[Any] = DataLoader(
        AsDataset(items), batch_size=None, num_workers=workers, collate_fn=identity, prefetch_factor=2,
        multiprocessing_context=worker_context([__name__]),
    )  # fmt: skip
    return iter(loader)


def touch(item: Any) -> int:
    """Read one byte of every memory page."""
    batch = item.get("batch")
    tensors = vars(batch.pixels).values() if isinstance(batch, ClipBatch) else item.values()
    return sum(int(tensor.flatten()[::4096].sum()) for tensor in tensors if isinstance(tensor, torch.Tensor))


def measure(
    start: Callable[[ItemReader[Any], int], Iterator[Any]], items: Any, workers: int
) -> tuple[float, float]:
    """Return (clips/s, CPU seconds per 1000 clips), after the first item of each worker."""
    iterator = start(items, workers)
    first = [next(iterator) for _ in range(2 * workers)]
    began_s, cpu_s, done = time.monotonic(), time.process_time(), 0
    seen: dict[int, list[tuple[float, int]]] = {}
    total = 0
    for item in iterator:
        total += touch(item)
        done += items.clips
        seen.setdefault(item["pid"], []).append((item["cpu_s"], items.clips))
    wall_s = time.monotonic() - began_s
    main_s = (time.process_time() - cpu_s) / done
    spent = sum(marks[-1][0] - marks[0][0] for marks in seen.values())
    counted = sum(clips for marks in seen.values() for _, clips in marks[:-1])
    assert first and total
    return done / wall_s, 1000 * (main_s + spent / max(counted, 1))


def compare(name: str, items: Any, workers: int) -> None:
    rates: dict[str, list[tuple[float, float]]] = {"DataLoader": [], "WorkerPool": []}
    for _ in range(ROUNDS):
        rates["DataLoader"].append(measure(data_loader, items, workers))
        rates["WorkerPool"].append(measure(worker_pool, items, workers))
    best = {
        loader: (max(rate for rate, _ in runs), min(cpu for _, cpu in runs)) for loader, runs in rates.items()
    }
    for loader, (rate, cpu_s) in best.items():
        print(f"{name:32} {loader:12} {rate:10.0f} clips/s {cpu_s:8.3f} CPU s per 1000 clips")
    print(f"{name:32} {'pool / DL':12} {best['WorkerPool'][0] / best['DataLoader'][0]:10.2f} x"
          f" {best['WorkerPool'][1] / best['DataLoader'][1]:14.2f} x")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shards", help="data set; reads real clips too")
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    compare("empty, 32 clips of 16x32x32", Empty(clips=32, size=32, length=400), arguments.workers)
    compare("empty, 8 clips of 16x224x224", Empty(clips=8, size=224, length=60), arguments.workers)
    compare("empty, 64 clips of 16x224x224", Empty(clips=64, size=224, length=16), arguments.workers)
    if arguments.shards:
        for size, frames in ((32, 8), (224, 16)):
            clip = replace(ClipConfig(), size=size, frames=frames)
            stream = TrainingClips(open_index(arguments.shards), clip=clip, augment=AugmentConfig(), seed=0)
            compare(f"real, 16 clips of {frames}x{size}x{size}", Real(stream, 16, 30), arguments.workers)


if __name__ == "__main__":
    main()
