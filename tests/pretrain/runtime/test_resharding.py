"""A load reads every byte once over all processes; it is bitwise equal at any stage and world size."""

import math
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from kinemae.data_tools.command import CheckpointError
from kinemae.pretrain.runtime.checkpoint import Checkpoints, RunState
from kinemae.pretrain.runtime.processes import Processes
from kinemae.pretrain.runtime.resharding import Source, reshard
from kinemae.pretrain.runtime.tensor_shards import (
    KINDS,
    FillShards,
    ShardRange,
    ShardTable,
    TensorShard,
    equal_range,
    exchange_replicated,
    split_replicated,
    value_counts,
)
from tests.seeds import examples
from tests.simulated_ranks import run_simulated

SHAPES = {"bias": (3,), "empty": (0,), "frozen": (70,), "scale": (), "table": (40, 11), "weight": (29, 31)}
TRAINED = ("bias", "scale", "table", "weight")
STAGES, WORLDS = (0, 1, 3), (1, 2, 5)


class StagedEngine:
    """Values that are sharded as at a ZeRO stage: 0 replicated, 1 one flat group, 3 each parameter."""

    def __init__(self, stage: int, processes: Processes, *, step: int):
        self.stage, self.processes, self.step = stage, processes, step
        self.whole = whole_values(step)
        if stage:  # a process has its own values only
            self.whole = {key: torch.full_like(values_V, math.nan) for key, values_V in self.whole.items()}
            for shard in self.local():
                expected_V = whole_values(step)[shard.kind, shard.name][shard.start : shard.stop]
                shard.values_V.copy_(expected_V)
            for name in ("empty", "frozen"):
                self.whole["weight", name].copy_(whole_values(step)["weight", name])

    def local(self) -> list[TensorShard]:
        """Values that no other process holds."""
        rank, world = self.processes.rank, self.processes.world
        keys = [(kind, name) for name in TRAINED for kind in KINDS]
        if self.stage == 0:
            return []
        if self.stage == 3:
            ranges = [(kind, name, *equal_range(math.prod(SHAPES[name]), rank, world)) for kind, name in keys]
            return [self._shard(*one) for one in ranges if one[2] < one[3]]
        found, place = [], 0
        total = sum(math.prod(SHAPES[name]) for name in TRAINED)
        first, last = equal_range(total, rank, world)
        for name in TRAINED:
            count = math.prod(SHAPES[name])
            start, stop = max(first - place, 0), min(last - place, count)
            found += [self._shard(kind, name, start, stop) for kind in KINDS if start < stop]
            place += count
        return found

    def replicated(self) -> list[TensorShard]:
        """Values that every process holds."""
        names = {0: SHAPES, 1: ("empty", "frozen"), 3: ("empty", "frozen")}[self.stage]
        kinds = {name: KINDS if name in TRAINED else KINDS[:1] for name in names}
        return [self._shard(kind, name, 0, math.prod(SHAPES[name])) for name in names for kind in kinds[name]]

    def _shard(self, kind: str, name: str, start: int, stop: int) -> TensorShard:
        return TensorShard(name=name, kind=kind, start=start, values_V=self.whole[kind, name][start:stop])

    def shards(self) -> list[TensorShard]:
        """See `Checkpointable`."""
        own = split_replicated(self.replicated(), self.processes.rank, self.processes.world)
        return [*self.local(), *own]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """See `Checkpointable`."""
        return SHAPES

    def updates(self) -> dict[str, int]:
        """See `Checkpointable`."""
        return dict.fromkeys(TRAINED, self.step)

    def load_shards(self, fill: FillShards, updates: dict[str, int]) -> None:
        """See `Checkpointable`."""
        self.step = updates["bias"]
        fill(self.shards())
        exchange_replicated(self.replicated(), self.processes, exchanged_values=64)

    def is_at(self, step: int) -> bool:
        """Check that the values of this process are those of one step, bit for bit."""
        expected = whole_values(step)
        return self.step == step and all(
            torch.equal(one.values_V, expected[one.kind, one.name][one.start : one.stop])
            for one in (*self.local(), *self.replicated())
        )


def whole_values(step: int) -> dict[tuple[str, str], Tensor]:
    """All values of the model at a step, by kind and name."""
    generator = torch.Generator().manual_seed(step)
    return {
        (kind, name): torch.randn(math.prod(shape), generator=generator)
        for name, shape in SHAPES.items()
        for kind in (KINDS if name in TRAINED else KINDS[:1])
    }


def save(processes: Processes, run_dir: Path, *, stage: int, steps: Sequence[int]) -> None:
    saver = Checkpoints(run_dir, processes, keep=9, background=False)
    for step in steps:
        saver.save(StagedEngine(stage, processes, step=step), RunState(step=step))
    saver.commit()


def load(processes: Processes, run_dir: Path, *, stage: int) -> tuple[int, bool]:
    """Step of the newest checkpoint, and whether all values are those of the step."""
    engine = StagedEngine(stage, processes, step=999)
    step = Checkpoints(run_dir, processes).load_newest(engine).step
    return step, engine.is_at(step)


class Opens:
    """Names of opened shard and JSON files of checkpoints, and bytes read by this process."""

    def __init__(self) -> None:
        self.names: Counter[str] = Counter()
        self.is_on = False
        sys.addaudithook(self._count)  # it stays installed

    def _count(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.is_on and event == "open" and "/checkpoints/" in str(arguments[0]):
            self.names[Path(arguments[0]).name] += 1


OPENS = Opens()


@contextmanager
def counted_io() -> Iterator[list[int]]:
    """Count opens in `OPENS`; append the number of read bytes at the end."""
    found: list[int] = []
    OPENS.names.clear()
    OPENS.is_on, before = True, read_bytes()
    yield found
    OPENS.is_on = False
    found.append(read_bytes() - before)


def read_bytes() -> int:
    """Bytes of all reads of this process."""
    return int(Path("/proc/self/io").read_text().split()[1])


@pytest.mark.parametrize("saved", STAGES)
@pytest.mark.parametrize("writers", WORLDS)
def test_a_load_at_any_stage_and_world_is_bitwise_equal_and_reads_once(
    tmp_path: Path, saved: int, writers: int
) -> None:
    run_simulated(writers, partial(save, run_dir=tmp_path, stage=saved, steps=[7]))
    files = {path.name: path.stat().st_size for path in tmp_path.rglob("step-*/*")}
    for stage in STAGES:
        for readers in WORLDS:
            with counted_io() as found:
                results, world = run_simulated(readers, partial(load, run_dir=tmp_path, stage=stage))
            assert results == [(7, True)] * readers
            assert OPENS.names == dict.fromkeys(files, 1)
            assert sum(files.values()) <= found[0] < sum(files.values()) + 200 * readers
            if (saved, writers) == (stage, readers):
                assert sum(world.bytes_received) == 0


def test_with_more_files_than_descriptors_each_is_opened_twice(tmp_path: Path) -> None:
    run_simulated(40, partial(save, run_dir=tmp_path, stage=3, steps=[7]))
    with counted_io():
        results, _ = run_simulated(2, partial(load, run_dir=tmp_path, stage=0))
    assert results == [(7, True)] * 2
    shards = {count for name, count in OPENS.names.items() if name.startswith("shard")}
    assert shards == {2} and len(OPENS.names) == 43


@pytest.mark.parametrize("place", ["header", "values"])
def test_damage_of_any_file_is_found_on_all_ranks_and_the_checkpoint_before_is_loaded(
    tmp_path: Path, place: str
) -> None:
    run_simulated(5, partial(save, run_dir=tmp_path, stage=3, steps=[7, 9]))
    victim = tmp_path / "checkpoints" / "step-00000009" / "shard-00003-of-00005.safetensors"
    content = bytearray(victim.read_bytes())
    content[12 if place == "header" else -7] ^= 4
    victim.write_bytes(content)
    results, _ = run_simulated(2, partial(load, run_dir=tmp_path, stage=0))
    assert results == [(7, True)] * 2


def test_all_ranks_fail_alike_if_nothing_is_intact(tmp_path: Path) -> None:
    run_simulated(2, partial(save, run_dir=tmp_path, stage=1, steps=[7]))
    for path in tmp_path.rglob("shard-00001*"):
        path.write_bytes(path.read_bytes()[:-4] + b"four")

    def fail(processes: Processes) -> str:
        with pytest.raises(CheckpointError) as error:
            load(processes, tmp_path, stage=0)
        return str(error.value)

    (first, *others), _ = run_simulated(5, fail)
    assert "step 7: shard-00001-of-00002.safetensors has changed since it was written" in first
    assert others == [first] * 4


COUNT = 50


@examples(40)
@given(
    edges=st.sets(st.integers(1, COUNT - 1)).map(sorted),
    cuts=st.sets(st.integers(1, COUNT - 1)).map(sorted),
    readers=st.integers(1, 4),
    exchanged=st.integers(1, 40),
)
def test_any_shards_are_filled_from_any_files(
    edges: list[int], cuts: list[int], readers: int, exchanged: int
) -> None:
    runs = list(zip([0, *edges], [*edges, COUNT], strict=True))
    table = ShardTable(
        [ShardRange(str(number), "weight", "w", *run) for number, run in enumerate(runs)],
        counts=value_counts({"w": (COUNT,)}, {"w": 1}),
    )

    def work(processes: Processes) -> list[Tensor]:
        rank, world = processes.rank, processes.world
        own = [
            ShardRange(str(number), "weight", "w", *runs[number]) for number in range(rank, len(runs), world)
        ]
        stream_V = torch.cat([torch.empty(0), *(torch.arange(float(one.start), one.stop) for one in own)])
        pieces = iter(range(len(stream_V)))

        def read_next(count: int) -> Tensor:
            return stream_V[[next(pieces) for _ in range(count)]]

        source = Source(table=table, own=own, reader_of=lambda file: int(file) % world, read_next=read_next)
        needed = list(zip([0, *cuts], [*cuts, COUNT], strict=True))[rank::world]
        shards = [
            TensorShard(name="w", kind=kind, start=start, values_V=torch.full((stop - start,), math.nan))
            for kind in ("weight", "exp_avg")
            for start, stop in needed
        ]
        reshard(shards, source, processes, exchanged_values=exchanged)
        assert next(pieces, None) is None, "all values are read, also those that no shard needs"
        for shard in shards:
            expected_V = torch.arange(float(shard.start), shard.stop) * (shard.kind == "weight")
            assert torch.equal(shard.values_V, expected_V)
        return [shard.values_V for shard in shards]

    run_simulated(readers, work)
