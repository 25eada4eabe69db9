"""An engine on plain tensors for checkpoint tests: starts fast, and every value encodes its step."""

from pathlib import Path

import torch
from torch import Tensor

from kinemae.pretrain.runtime.checkpoint import Checkpoints, RunState
from kinemae.pretrain.runtime.processes import Processes
from kinemae.pretrain.runtime.tensor_shards import KINDS, FillShards, TensorShard, split_replicated

SHAPES = {"frozen": (7,), "head.bias": (), "head.weight": (5, 3), "table": (40, 11)}
TRAINED = ("head.bias", "head.weight", "table")


class PlainEngine:
    """Engine with values that are sharded evenly over the processes, as at ZeRO 3.

    Attributes:
        values: all values of the model by name and kind, complete on every process.
        held: range of the values that this process saves and loads.
    """

    def __init__(self, shapes: dict[str, tuple[int, ...]] = SHAPES, *, rank: int = 0, world: int = 1):
        self._shapes = shapes
        self.done = 0
        self.values: dict[tuple[str, str], Tensor] = {}
        self.held: dict[str, tuple[int, int]] = {}
        for name, shape in shapes.items():
            count = torch.Size(shape).numel()
            self.held[name] = (count * rank // world, count * (rank + 1) // world)
            for kind in KINDS if name in TRAINED or name not in SHAPES else KINDS[:1]:
                self.values[name, kind] = torch.zeros(count)

    def train_to(self, step: int) -> None:
        """Set every value to a function of its position, kind and step."""
        self.done = step
        for (name, kind), values_V in self.values.items():
            scale = 1 + KINDS.index(kind)
            torch.arange(len(values_V), out=values_V).mul_(scale).add_(0 if name == "frozen" else step)

    def shards(self) -> list[TensorShard]:
        """See `Checkpointable`."""
        return [
            TensorShard(
                name=name, kind=kind, start=self.held[name][0], values_V=values_V[slice(*self.held[name])]
            )
            for (name, kind), values_V in self.values.items()
        ]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """See `Checkpointable`."""
        return self._shapes

    def updates(self) -> dict[str, int]:
        """See `Checkpointable`."""
        return {name: self.done for name, kind in self.values if kind == "exp_avg"}

    def load_shards(self, fill: FillShards, updates: dict[str, int]) -> None:
        """See `Checkpointable`."""
        (self.done,) = set(updates.values())
        fill(self.shards())

    def is_at(self, step: int) -> bool:
        """Check that the values of this process are those of one step, bit for bit."""
        expected = PlainEngine(self._shapes)
        expected.train_to(step)
        return self.done == step and all(
            torch.equal(values_V[slice(*self.held[key[0]])], expected.values[key][slice(*self.held[key[0]])])
            for key, values_V in self.values.items()
        )


class Line:
    """Replicated shards, of which a process fills its part."""

    def __init__(self) -> None:
        sizes = (5, 0, 1, 40, 3)
        self.shards = [
            TensorShard(name=str(number), kind="weight", start=0, values_V=torch.full((size,), -1.0))
            for number, size in enumerate(sizes)
        ]

    def fill(self, rank: int, world: int) -> None:
        """Fill a process's part with values that encode their shard and offset."""
        for shard in split_replicated(self.shards, rank, world):
            shard.values_V.copy_(torch.arange(shard.start, shard.stop) + 100.0 * int(shard.name))


def alone() -> Processes:
    """Return the processes of a run with one process."""
    return Processes(rank=0, world=1, device=torch.device("cpu"))


def checkpoints(run_dir: Path, *, keep: int = 2, every: int = 0, background: bool = True) -> Checkpoints:
    """Make checkpoints of a run with one process."""
    return Checkpoints(run_dir, alone(), keep=keep, keep_every_steps=every, background=background)


def save(run_dir: Path, *steps: int, keep: int = 100) -> None:
    """Save checkpoints of these steps."""
    saver, engine = checkpoints(run_dir, keep=keep), PlainEngine()
    for step in steps:
        engine.train_to(step)
        saver.save(engine, RunState(step=step))
    saver.commit()
    saver.commit()  # waits for the removal of old ones


def stored_steps(run_dir: Path) -> list[str]:
    """List all names in the checkpoint folder."""
    return sorted(path.name for path in (run_dir / "checkpoints").iterdir())
