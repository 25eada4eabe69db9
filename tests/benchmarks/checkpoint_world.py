"""Simulate saves and loads of checkpoints on many ranks: CPU seconds, bytes and opened files.

    python -m tests.benchmarks.checkpoint_world --folder /dev/shm       # base: 64, 256 and 1,024 ranks
    python -m tests.benchmarks.checkpoint_world --size small --worlds 8

Every rank is a thread, and one runs at a time. Shards have the shapes of a model without its values: all
ranks share one buffer, so that the memory of a single shard is enough. Collectives cost no time; only the
work of the processes is measured. Not measured: the last exchange at ZeRO 0, in which every rank receives the
whole state.
"""

import argparse
import math
import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from kinemae.pretrain.model.autoencoder import build_autoencoder
from kinemae.pretrain.model.sizes import SIZES, ModelConfig
from kinemae.pretrain.model.tokens import TokenGrid
from kinemae.pretrain.noise.none import NoNoise
from kinemae.pretrain.runtime import async_writer
from kinemae.pretrain.runtime.checkpoint import Checkpoints, RunState
from kinemae.pretrain.runtime.processes import Processes
from kinemae.pretrain.runtime.tensor_shards import (
    KINDS,
    FillShards,
    TensorShard,
    equal_range,
    split_replicated,
)
from kinemae.pretrain.targets.pixels import PixelTarget
from tests.simulated_ranks import run_simulated

_PATIENCE_S = 36000.0


class ModelShards:
    """The shards of a rank at ZeRO 0 or 3, all in one buffer."""

    def __init__(
        self, shapes: dict[str, tuple[int, ...]], buffer_V: torch.Tensor, stage: int, ranks: Processes
    ):
        self._shapes, self._buffer_V, self._stage, self._ranks = shapes, buffer_V, stage, ranks

    def shards(self) -> list[TensorShard]:
        """See `Checkpointable`."""
        rank, world = self._ranks.rank, self._ranks.world
        whole = [
            TensorShard(name=name, kind=kind, start=0, values_V=self._buffer_V[: math.prod(shape)])
            for name, shape in self._shapes.items()
            for kind in KINDS
        ]
        if self._stage == 0:
            return split_replicated(whole, rank, world)
        found = []
        for one in whole:
            start, stop = equal_range(len(one.values_V), rank, world)
            if start < stop:
                values_V = self._buffer_V[: stop - start]
                found.append(TensorShard(name=one.name, kind=one.kind, start=start, values_V=values_V))
        return found

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """See `Checkpointable`."""
        return self._shapes

    def updates(self) -> dict[str, int]:
        """See `Checkpointable`."""
        return dict.fromkeys(self._shapes, 1)

    def load_shards(self, fill: FillShards, updates: dict[str, int]) -> None:
        """See `Checkpointable`."""
        fill(self.shards())


class Opens:
    """Counter of opened files of checkpoints."""

    def __init__(self) -> None:
        self.count = 0
        sys.addaudithook(self._count)

    def _count(self, event: str, arguments: tuple[Any, ...]) -> None:
        self.count += event == "open" and "/checkpoints/" in str(arguments[0])


class Seconds(NamedTuple):
    """CPU seconds of one rank: writing or reading, and for a save its commit."""

    files: float
    commit: float = 0.0


def save(ranks: Processes, run_dir: Path, make: partial[ModelShards], stage: int) -> Seconds:
    """Save a checkpoint on one rank."""
    saver, start = Checkpoints(run_dir, ranks, background=True), time.thread_time()
    saver.save(make(stage, ranks), RunState(step=1, world=ranks.world, zero_stage=stage))
    while not saver.is_written():
        time.sleep(0.01)
    written = time.thread_time()
    saver.commit()
    return Seconds(written - start, time.thread_time() - written)


def load(ranks: Processes, run_dir: Path, make: partial[ModelShards], stage: int) -> Seconds:
    """Load a checkpoint on one rank."""
    start = time.thread_time()
    assert Checkpoints(run_dir, ranks).load_newest(make(stage, ranks)).step == 1
    return Seconds(time.thread_time() - start)


def measure(shapes: dict[str, tuple[int, ...]], world: int, stages: list[int], folder: Path) -> None:
    """Save at ZeRO 3; then load at each stage; print a line of the table for each."""
    buffer_V = torch.zeros(max(math.prod(shape) for shape in shapes.values()))
    make, opens = partial(ModelShards, shapes, buffer_V), Opens()
    saved, _ = run_simulated(world, partial(save, run_dir=folder, make=make, stage=3))
    size = sum(path.stat().st_size for path in folder.rglob("step-*/*"))
    commits = [seconds.commit for seconds in saved]
    print(
        f"| {world} | save, ZeRO 3 | rank 0 {commits[0]:.2f}, others {statistics.mean(commits[1:]):.3f} | "
        f"{size / 1e9:.2f} written | | {world} files |",
        flush=True,
    )
    for stage in stages:
        opens.count, before = 0, read_bytes()
        loaded, simulated = run_simulated(
            world, partial(load, run_dir=folder, make=make, stage=stage), patience_s=_PATIENCE_S
        )
        seconds = [one.files for one in loaded]
        print(
            f"| {world} | load, ZeRO {stage} | rank 0 {seconds[0]:.2f}, others "
            f"{statistics.mean(seconds[1:]):.2f} | {(read_bytes() - before) / 1e9:.2f} read | "
            f"{sum(simulated.bytes_received) / 1e9:.2f} | {opens.count} opened |",
            flush=True,
        )


def read_bytes() -> int:
    """Bytes of all reads of this process."""
    return int(Path("/proc/self/io").read_text().split()[1])


def model_shapes(size: str) -> dict[str, tuple[int, ...]]:
    """Shapes of the parameters of encoder and decoder."""
    config = ModelConfig(size=size)
    with torch.device("meta"):
        grid = TokenGrid.of(16, 224, config.shape().encoder.patch)
        model = build_autoencoder(config, grid, target=PixelTarget(), noise=NoNoise())
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", default="base", choices=list(SIZES))
    parser.add_argument("--worlds", type=int, nargs="+", default=[64, 256, 1024])
    parser.add_argument("--stages", type=int, nargs="+", default=[3, 0], help="of the loads")
    parser.add_argument("--folder", type=Path, help="on the disk to use; temporary if not given")
    options = parser.parse_args()
    torch.set_num_threads(1)
    async_writer._NICENESS = 0  # the rank waits for its writer
    shapes = model_shapes(options.size)
    print(f"{options.size}: {sum(map(math.prod, shapes.values())) / 1e6:.0f} M parameters")
    print("| ranks | action | CPU seconds | GB | GB received | files |\n|---|---|---|---|---|---|")
    for world in options.worlds:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            measure(shapes, world, options.stages, Path(folder))


if __name__ == "__main__":
    main()
