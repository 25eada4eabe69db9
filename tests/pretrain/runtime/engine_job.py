"""One process of a job that trains a small model under every ZeRO stage, saves it in pieces and loads them.

    RANK=.. WORLD_SIZE=.. python -m tests.pretrain.runtime.engine_job CONFIG FOLDER [STATES ...]

Writes `FOLDER/worldW-rankR.json`: what each engine measured. Its states lie in `FOLDER/worldW-stageS-rankR.pt`;
those of each world in STATES are loaded too. Several engines share one process, since a start costs seconds.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data_tools.config import load_config
from data_tools.randomness import ClipRandom
from data_tools.stream.batch import ClipBatch
from pretrain.config import PretrainConfig
from pretrain.runtime.engine import Engine
from pretrain.runtime.optimiser import learning_rate, parameter_groups
from pretrain.runtime.processes import leave_group
from pretrain.training import Plan, make_plan, training_clips

STAGES = (3, 0, 1, 2)  # 3 first: it puts its own linear layers in place for the rest of the process
SAVED_AT, STEPS = 3, 6
SPOILT = 2


class Job:
    """A process that trains the config's model again and again, from the same start."""

    def __init__(self, config: Path, *overrides: str):
        self.config = config
        self.overrides = overrides
        plan = self.plan(0)
        self.processes = plan.processes
        clips = training_clips(plan, plan.split)
        count, micro = plan.batch.global_clips, plan.batch.micro_clips
        assert plan.batch.accumulation == 1
        first = [step * count + self.processes.rank * micro for step in range(STEPS)]
        self.batches = [clips.batch(range(place, place + micro)) for place in first]

    def plan(self, stage: int) -> Plan:
        """A new model, the same each time."""
        overrides = [*self.overrides, f"engine.zero_stage={stage}"]
        return make_plan(load_config(PretrainConfig, self.config, overrides), is_run=False)

    def engine(self, stage: int, **changes: Any) -> tuple[Plan, Engine]:
        """An engine at its start."""
        plan = self.plan(stage)
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
        """Loss over all processes and norm of each step; the last process's loss of a spoilt step is NaN."""
        found = []
        for step in steps:
            batch: ClipBatch = self.batches[step]
            values = engine(batch, ClipRandom(plan.config.seed, batch.clip_index_B))
            loss = values["loss"].mean()
            is_spoilt = step == spoilt and self.processes.rank == self.processes.world - 1
            engine.backward(loss * float("nan") if is_spoilt else loss)
            norm = engine.step(learning_rate(step, plan.config.steps, plan.config.optim))
            engine.after_update((step + 1) / STEPS)
            losses = self.processes.gather(loss.item())
            found.append([sum(losses) / len(losses), float(norm)])
        return found


def save(engine: Engine, path: Path) -> None:
    """This process's pieces."""
    pieces = [(piece.name, piece.kind, piece.start, piece.values_V.clone()) for piece in engine.pieces()]
    torch.save({"pieces": pieces, "updates": engine.updates()}, path)


def reader(paths: list[Path]) -> tuple[Callable[[str, str, int, int], Tensor], dict[str, int]]:
    """Reads from the pieces of all processes; each value must stand in exactly one of them."""
    parts = [torch.load(path) for path in paths]
    assert all(part["updates"] == parts[0]["updates"] for part in parts)
    whole: dict[tuple[str, str], Tensor] = {}
    for name, kind, start, values_V in sorted(
        (p for part in parts for p in part["pieces"]), key=lambda p: p[:3]
    ):
        before_V = whole.get((name, kind), torch.empty(0))
        assert start == len(before_V), (
            f"{name} {kind}: a piece starts at {start}, after {len(before_V)} values"
        )
        whole[name, kind] = torch.cat([before_V, values_V])

    def read(name: str, kind: str, start: int, stop: int) -> Tensor:
        assert 0 <= start < stop <= len(whole[name, kind])
        return whole[name, kind][start:stop]

    return read, parts[0]["updates"]


def main() -> None:
    """See the head of this file."""
    config, folder, worlds = Path(sys.argv[1]), Path(sys.argv[2]), [int(world) for world in sys.argv[3:]]
    job = Job(config)
    rank, world = job.processes.rank, job.processes.world
    found: dict[str, Any] = {"unbroken": {}, "spoilt": {}, "resumed": {}, "readable": {}}
    for stage in STAGES:
        plan, engine = job.engine(stage)
        lines = job.train(engine, plan, range(SAVED_AT))
        save(engine, folder / f"world{world}-stage{stage}-rank{rank}.pt")
        found["unbroken"][stage] = lines + job.train(engine, plan, range(SAVED_AT, STEPS))
        engine.make_readable()
        found["readable"][stage] = {
            name: value.double().sum().item() for name, value in plan.model.state_dict().items()
        }
        plan, engine = job.engine(stage)
        found["spoilt"][stage] = job.train(engine, plan, range(STEPS), spoilt=SPOILT)
        found["spoilt"][f"{stage}/updates"] = sorted(set(engine.updates().values()))
    job.processes.wait_for_all()
    for writer in sorted({*worlds, world}):
        for saved in STAGES:
            read, updates = reader([folder / f"world{writer}-stage{saved}-rank{r}.pt" for r in range(writer)])
            for stage in STAGES:
                plan, engine = job.engine(stage)
                engine.load_pieces(read, updates)
                found["resumed"][f"{writer}/{saved}/{stage}"] = job.train(
                    engine, plan, range(SAVED_AT, STEPS)
                )
    (folder / f"world{world}-rank{rank}.json").write_text(json.dumps(found))
    leave_group()


if __name__ == "__main__":
    main()
