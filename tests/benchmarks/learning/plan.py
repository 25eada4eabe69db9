"""The units of a scoreboard: which exist, in which order, and what they will cost."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.benchmarks.learning.settings import RANDOM, Board, Method
from tests.benchmarks.learning.units import ATTENTIVE, FLOORS, FROZEN, PRETRAIN, TUNED, Unit
from tests.benchmarks.real_clips import TRAIN

FLOPS_PER_S = 1.5e10
"""Of one core in pretraining with decoding, before a unit of the work folder has measured it."""

ESTIMATES_S = {FROZEN: 60.0, FLOORS: 60.0, ATTENTIVE: 900.0, TUNED: 900.0}
"""CPU seconds of other units before one of their kind is measured."""

RANDOM_S = 10.0
"""CPU seconds of drawing random weights."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What to measure.

    Attributes:
        attentive, finetune: methods with attentive probes, and with fine-tuning.
        more_budgets: the budgets of these two.
    """

    methods: Sequence[str]
    budgets: Sequence[float]
    seeds: Sequence[int]
    attentive: Sequence[str] = ()
    finetune: Sequence[str] = ()
    more_budgets: Sequence[float] = ()


@dataclass(frozen=True, kw_only=True)
class Run:
    """One pretraining with everything that is measured on its encoder.

    Attributes:
        flops: budget; 0 for random weights.
        step_flops: of one step of the method.
        units: the pretraining, after that of its teacher if it has one, and the frozen probe.
        more: the attentive probe, and fine-tuning on each fold, if they are wanted.
    """

    method: Method
    flops: float
    seed: int
    steps: int
    step_flops: int
    units: tuple[Unit, ...]
    more: tuple[Unit, ...] = ()


def plan_runs(board: Board, wanted: Wanted) -> list[Run]:
    """List all runs: random weights, then all methods for each budget and seed, smallest budget first.

    Raises:
        ValueError: an unknown method, or a budget below one step.
    """
    chosen = [board.method(name) for name in wanted.methods]
    flops = {method.name: 0 if method.kind == RANDOM else board.step_flops(method) for method in chosen}
    runs = []
    for budget in [0.0, *sorted(wanted.budgets)]:
        for seed in wanted.seeds:
            for method in chosen:
                if (method.kind == RANDOM) == (budget == 0):
                    runs.append(_run(board, wanted, method, budget, seed, flops[method.name]))
    return runs


def plan_floors(board: Board) -> Unit:
    """The unit of the floors."""
    config = {**board.tree["floors"], "folds": board.folds, "seed": 0, "data": board.fingerprint}
    places = {"shards": str(board.shards)}
    return Unit(kind=FLOORS, method="pixels", flops=0.0, seed=0, config=config, places=places)


def _run(board: Board, wanted: Wanted, method: Method, flops: float, seed: int, step_flops: int) -> Run:
    steps = int(flops * method.student_fraction // step_flops) if flops else 1
    if steps < 1:
        raise ValueError(
            f"--flops: expected at least {step_flops / method.student_fraction:.3g}, one step of "
            f"{method.name}, got {flops:.3g}; fix: raise it"
        )
    config: dict[str, Any] = {
        "method": method.kind,
        "base": board.tree["base"],
        "arguments": [*method.overrides, f"steps={steps}", f"seed={seed}"],
        "steps": steps,
        "data": board.fingerprint,
        "revision": method.revision,
        "recipe": method.recipe,
    }
    row: dict[str, Any] = {"method": method.name, "flops": flops, "seed": seed}
    places = {"shards": str(board.shards), "base": str(board.base_file)}
    teachers = _teachers(board, method, flops, seed)
    teacher = teachers[0] if teachers else None
    pretraining = Unit(kind=PRETRAIN, config=config, places=places, teacher=teacher, **row)
    probe = {**board.tree["probe"], "folds": board.folds, "seed": seed}
    frozen = Unit(kind=FROZEN, config=probe, needs=pretraining, places=places, **row)
    more: list[Unit] = []
    is_chosen = method.kind == RANDOM or flops in wanted.more_budgets
    if is_chosen and method.name in wanted.attentive:
        probe = {"arguments": [*board.tree["attentive"], f"seed={seed}"], "folds": board.folds}
        more.append(Unit(kind=ATTENTIVE, config=probe, needs=pretraining, places=places, **row))
    if is_chosen and method.name in wanted.finetune:
        more += _tuned(board, pretraining, weights="random" if method.kind == RANDOM else "pretrained")
    units = (*teachers, pretraining, frozen)
    return Run(
        method=method,
        flops=flops,
        seed=seed,
        steps=steps,
        step_flops=step_flops,
        units=units,
        more=tuple(more),
    )


def _teachers(board: Board, method: Method, flops: float, seed: int) -> list[Unit]:
    """The pretraining of the teacher of a method; empty without one."""
    if not method.teacher:
        return []
    wanted = Wanted(methods=[method.teacher], budgets=[method.teacher_fraction * flops], seeds=[seed])
    return [plan_runs(board, wanted)[0].units[0]]


def _tuned(board: Board, pretraining: Unit, *, weights: str) -> list[Unit]:
    """Fine-tuning of each fold."""
    seed = pretraining.seed
    arguments = [*TRAIN, *board.tree["finetune"], f"weights={weights}", f"seed={seed}"]
    return [
        Unit(
            kind=TUNED,
            method=pretraining.method,
            flops=pretraining.flops,
            seed=seed,
            config={"arguments": arguments, "held_out": fold},
            needs=pretraining,
            places={"fold": str(board.fold_shards(fold))},
        )
        for fold in board.folds
    ]


def estimate_s(unit: Unit, done: Sequence[dict[str, Any]]) -> float:
    """Estimate the CPU seconds of a unit from finished ones: of the same method, else of the same kind.

    Args:
        done: results of the work folder.
    """
    if unit.kind == PRETRAIN and not unit.flops:
        return RANDOM_S
    alike = [one for one in done if one["kind"] == unit.kind and one["cost"]["cpu_s"]]
    alike = [one for one in alike if one["method"] == unit.method] or alike
    if unit.kind != PRETRAIN:
        return statistics.median([one["cost"]["cpu_s"] for one in alike] or [ESTIMATES_S[unit.kind]])
    rates = [one["flops"] / one["cost"]["cpu_s"] for one in alike if one["flops"]]
    return unit.flops / statistics.median(rates or [FLOPS_PER_S])


def finished(work: Path) -> list[dict[str, Any]]:
    """All results of a work folder."""
    paths = sorted((work / "results").glob("*.json"))
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths]
