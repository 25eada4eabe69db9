"""The units of a scoreboard: which exist, in which order, and what they will cost."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.benchmarks.learning.settings import RANDOM, Board, Method
from tests.benchmarks.learning.units import FLOORS, FROZEN, PRETRAIN, Unit

FLOPS_PER_S = 1.5e10
"""Of one core in pretraining with decoding, before a unit of the work folder has measured it."""

OTHER_S, RANDOM_S = 60.0, 10.0
"""CPU seconds of other units before one of their kind is measured, and of drawing random weights."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One pretraining with everything that is measured on its encoder.

    Attributes:
        flops: budget; 0 for random weights.
        units: the pretraining, then the units that need it.
    """

    method: Method
    flops: float
    seed: int
    steps: int
    units: tuple[Unit, ...]


def plan_runs(
    board: Board, methods: Sequence[str], budgets: Sequence[float], seeds: Sequence[int]
) -> list[Run]:
    """List all runs: all methods at one budget and seed, then the next seed, then the next budget."""
    chosen = [board.method(name) for name in methods]
    flops = {method.name: board.step_flops(method) for method in chosen if method.kind != RANDOM}
    runs = [_run(board, method, 0.0, seed, 1) for seed in seeds for method in chosen if method.kind == RANDOM]
    for budget in sorted(budgets):
        for seed in seeds:
            for method in chosen:
                if method.kind != RANDOM:
                    steps = int(budget // flops[method.name])
                    if steps < 1:
                        raise ValueError(
                            f"--flops: expected at least {flops[method.name]:.3g} for a step of "
                            f"{method.name}, got {budget:.3g}; fix: raise it"
                        )
                    runs.append(_run(board, method, budget, seed, steps))
    return runs


def plan_floors(board: Board) -> Unit:
    """The unit of the floors."""
    config = {**board.tree["floors"], "folds": board.folds, "seed": 0, "data": board.fingerprint}
    places = {"shards": str(board.shards)}
    return Unit(kind=FLOORS, method="pixels", flops=0.0, seed=0, config=config, places=places)


def _run(board: Board, method: Method, flops: float, seed: int, steps: int) -> Run:
    places = {"shards": str(board.shards), "base": str(board.base_file)}
    row: dict[str, Any] = {"method": method.name, "flops": flops, "seed": seed, "places": places}
    config: dict[str, Any] = {
        "method": method.kind,
        "base": board.tree["base"],
        "arguments": [*method.overrides, f"steps={steps}", f"seed={seed}"],
        "steps": steps,
        "data": board.fingerprint,
        "revision": method.revision,
        "recipe": method.recipe,
    }
    pretraining = Unit(kind=PRETRAIN, config=config, **row)
    probe = {**board.tree["probe"], "folds": board.folds, "seed": seed}
    frozen = Unit(kind=FROZEN, config=probe, needs=pretraining, **row)
    return Run(method=method, flops=flops, seed=seed, steps=steps, units=(pretraining, frozen))


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
        return statistics.median([one["cost"]["cpu_s"] for one in alike] or [OTHER_S])
    rates = [one["flops"] / one["cost"]["cpu_s"] for one in alike if one["flops"]]
    return unit.flops / statistics.median(rates or [FLOPS_PER_S])


def finished(work: Path) -> list[dict[str, Any]]:
    """All results of a work folder."""
    return [
        json.loads(path.read_text(encoding="utf-8")) for path in sorted((work / "results").glob("*.json"))
    ]
