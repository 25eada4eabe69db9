"""One process of a job that trains a small model under every ZeRO stage, saves it in shards and loads them.

    RANK=.. WORLD_SIZE=.. python -m tests.pretrain.runtime.engine_job CONFIG FOLDER WORLD

Many engines share a process, since a start costs seconds. WORLD is the size of another job that runs beside
this one: each loads its own states and the other's. `FOLDER/worldW-rankR.json` has the measurements.
"""

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kinemae.data_tools.config import load_config
from kinemae.data_tools.randomness import ClipRandom
from kinemae.pretrain.config import PretrainConfig
from kinemae.pretrain.runtime import engine as engine_module
from kinemae.pretrain.runtime.engine import Engine
from kinemae.pretrain.runtime.optimizer import parameter_groups, rates_at
from kinemae.pretrain.runtime.processes import destroy_process_group
from kinemae.pretrain.runtime.tensor_shards import FillShards, TensorShard
from kinemae.pretrain.training import Plan, make_plan, training_clips

STAGES = (3, 0, 1, 2)  # 3 first: DeepSpeed then puts its own linear layers in place for all that follow
SAVED_AT, STEPS, SPOILT = 2, 4, 1
LONGEST_WAIT_S = 240


class Job:
    """A process that trains the model of the config several times with the same initial weights.

    Attributes:
        requested: by stage, the number of values in each shard of the last load.
    """

    def __init__(self, config: Path):
        self.config = config
        self.requested: dict[int, list[int]] = {}
        plan = self.plan(0)
        self.processes = plan.processes
        clips = training_clips(plan, plan.split)
        count, micro = plan.batch.global_clips, plan.batch.micro_clips
        assert plan.batch.accumulation == 1
        first = [step * count + self.processes.rank * micro for step in range(STEPS)]
        self.batches = [clips.batch(range(place, place + micro)) for place in first]

    def plan(self, stage: int, *overrides: str) -> Plan:
        """A new model, the same each time."""
        keys = [f"engine.zero_stage={stage}", *overrides]
        return make_plan(load_config(PretrainConfig, self.config, keys), is_run=False)

    def engine(self, stage: int, *overrides: str) -> tuple[Plan, Engine]:
        """An engine at its start."""
        plan = self.plan(stage, *overrides)
        engine = Engine(
            plan.model,
            parameter_groups(plan.model, plan.config.optim.weight_decay),
            optim=plan.config.optim,
            engine=plan.config.engine,
            plan=plan.batch,
            processes=plan.processes,
        )
        return plan, engine

    def train(self, engine: Engine, plan: Plan, steps: range, *, spoilt: int = -1) -> list[list[float]]:
        """Loss over all processes and norm of each step; of a spoilt step the last process's loss is NaN."""
        found = []
        for step in steps:
            batch = self.batches[step]
            loss = engine(batch, ClipRandom(plan.config.seed, batch.clip_index_B))["loss"].mean()
            is_spoilt = step == spoilt and self.processes.rank == self.processes.world - 1
            engine.backward(loss * float("nan") if is_spoilt else loss)
            norm = engine.step(rates_at(step, plan.config.steps, plan.config.optim))
            engine.after_update((step + 1) / STEPS)
            losses = self.processes.all_gather_object(loss.item())
            found.append([sum(losses) / len(losses), float(norm)])
        return found

    def states(self, folder: Path, world: int, stage: int) -> list[Path]:
        """Folder with the saved shards of the processes of a job."""
        return [folder / f"world{world}-stage{stage}-rank{rank}.pt" for rank in range(world)]

    def start_all(self, folder: Path) -> dict[str, Any]:
        """Runs from the start, under every stage; each leaves its state of half way.

        Those about what processes tell one another are left out where there is one.
        """
        found: dict[str, Any] = {"unbroken": {}, "spoilt": {}, "updates": {}, "readable": {}, "bf16": {}}
        for stage in STAGES:
            plan, engine = self.engine(stage)
            lines = self.train(engine, plan, range(SAVED_AT))
            save(engine, self.states(folder, self.processes.world, stage)[self.processes.rank])
            found["unbroken"][stage] = lines + self.train(engine, plan, range(SAVED_AT, STEPS))
            engine.gather_weights()
            found["readable"][stage] = {
                name: value.double().norm().item() for name, value in plan.model.state_dict().items()
            }
            if self.processes.world == 1:
                continue
            plan, engine = self.engine(stage)
            found["spoilt"][stage] = self.train(engine, plan, range(STEPS), spoilt=SPOILT)
            found["updates"][stage] = sorted(set(engine.updates().values()))
            plan, engine = self.engine(stage, "engine.grad_reduce_dtype=bf16")
            found["bf16"][stage] = self.train(engine, plan, range(STEPS))
        return found

    def resume_all(self, folder: Path, other: int) -> dict[str, list[list[float]]]:
        """Load every state of this job at every stage, and each of the other job at one stage."""
        found = {}
        for writer in (self.processes.world, other):
            for saved in STAGES:
                fill, updates = reader(self.states(folder, writer, saved))
                for stage in STAGES if writer == self.processes.world else (3 - saved,):
                    plan, engine = self.engine(stage)
                    requested = self.requested[stage] = []
                    engine.load_shards(counted(fill, requested), updates)
                    lines = self.train(engine, plan, range(SAVED_AT, STEPS))
                    found[f"{writer} {saved} {stage}"] = lines
        return found


def save(engine: Engine, path: Path) -> None:
    """Write the shards of this process; the file appears when it is complete."""
    shards = [(shard.name, shard.kind, shard.start, shard.values_V.clone()) for shard in engine.shards()]
    torch.save({"shards": shards, "updates": engine.updates()}, path.with_suffix(".new"))
    path.with_suffix(".new").rename(path)


def reader(paths: list[Path]) -> tuple[FillShards, dict[str, int]]:
    """Read from the shards of all processes; each value must be in exactly one of them."""
    given_up_s = time.monotonic() + LONGEST_WAIT_S
    while not all(path.exists() for path in paths):
        assert time.monotonic() < given_up_s, f"the other job did not write {paths}"
        time.sleep(0.05)
    parts = [torch.load(path) for path in paths]
    assert all(part["updates"] == parts[0]["updates"] for part in parts)
    whole: dict[tuple[str, str], Tensor] = {}
    shards = sorted((shard for part in parts for shard in part["shards"]), key=lambda shard: shard[:3])
    for name, kind, start, values_V in shards:
        before_V = whole.get((name, kind), torch.empty(0))
        assert start == len(before_V), (
            f"{name} {kind}: a shard starts at {start}, after {len(before_V)} values"
        )
        whole[name, kind] = torch.cat([before_V, values_V])

    def fill(shards: Sequence[TensorShard]) -> None:
        for shard in shards:
            shard.values_V.copy_(whole[shard.name, shard.kind][shard.start : shard.stop])

    return fill, parts[0]["updates"]


def counted(fill: FillShards, requested: list[int]) -> FillShards:
    """Wrap a function and record the number of values of each shard."""

    def fill_and_count(shards: Sequence[TensorShard]) -> None:
        requested.extend(len(shard.values_V) for shard in shards)
        fill(shards)

    return fill_and_count


def main() -> None:
    """See the top of this file."""
    config, folder, other = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    engine_module.KEPT_GATHERED = 20  # or all parameters of so small a model would stay gathered
    job = Job(config)
    found = job.start_all(folder)
    found["resumed"] = job.resume_all(folder, other)
    found["read"] = {stage: sum(requested) for stage, requested in job.requested.items()}
    name = f"world{job.processes.world}-rank{job.processes.rank}.json"
    (folder / name).write_text(json.dumps(found))
    destroy_process_group()


if __name__ == "__main__":
    main()
