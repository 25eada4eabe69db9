"""Tables of the scoreboard: means over folds and seeds, and paired differences to one method."""

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.benchmarks.learning.plan import Run
from tests.benchmarks.learning.settings import PEER
from tests.benchmarks.learning.units import PRETRAIN, Unit


@dataclass(frozen=True, kw_only=True)
class Row:
    """One method at one budget.

    Attributes:
        flops: 0 for random weights.
        steps: of the pretraining.
        costs: of the pretraining of each seed: "cpu_s", "wall_s", "peak_gb".
        scores: by measure, then by seed, the top-1 of each fold in per cent.
    """

    method: str
    flops: float
    steps: int
    costs: list[dict[str, Any]]
    scores: dict[str, dict[int, list[float]]]

    def mean(self, measure: str) -> tuple[float, float] | None:
        """Mean over folds and seeds, and standard deviation over seeds; None if nothing is measured."""
        seeds = [statistics.mean(folds) for folds in self.scores.get(measure, {}).values()]
        return (statistics.mean(seeds), _deviation(seeds)) if seeds else None

    def difference(self, other: "Row", measure: str) -> dict[str, float] | None:
        """Difference to another row over the pairs of seed and fold that both have."""
        own, others = self.scores.get(measure, {}), other.scores.get(measure, {})
        pairs = [
            mine - its
            for seed in own
            if seed in others
            for mine, its in zip(own[seed], others[seed], strict=True)
        ]
        if not pairs:
            return None
        higher = sum(pair > 0 for pair in pairs)
        return {
            "mean": statistics.mean(pairs),
            "deviation": _deviation(pairs),
            "higher": higher,
            "pairs": len(pairs),
        }

    def cost(self, name: str) -> float:
        """Mean of a cost over the seeds."""
        return statistics.mean([cost[name] for cost in self.costs])


@dataclass(frozen=True, kw_only=True)
class Table:
    """All rows, in the order of budgets and methods.

    Attributes:
        floors: top-1 of each fold in per cent, by floor.
        against: the method to which the others are compared.
    """

    floors: dict[str, list[float]]
    rows: list[Row]
    against: str = PEER

    @staticmethod
    def of(work: Path, floors: Unit, runs: Sequence[Run], against: str = PEER) -> "Table":
        """Collect what is done."""
        found = floors.result(work)
        rows: dict[tuple[float, str], Row] = {}
        for run in runs:
            units = (*run.units, *run.more)
            results = [result for unit in units if (result := unit.result(work)) is not None]
            parts = [result["cost"] for result in results if result["kind"] == PRETRAIN]
            if len(parts) < sum(unit.kind == PRETRAIN for unit in units):
                continue
            key = run.flops, run.method.name
            empty = Row(method=run.method.name, flops=run.flops, steps=run.steps, costs=[], scores={})
            row = rows.setdefault(key, empty)
            row.costs.append(_sum(parts))
            by_measure: dict[str, list[float]] = {}
            for result in results:  # fine-tuning has a result for each fold, in their order
                for measure, score in result.get("scores", {}).items():
                    by_measure.setdefault(measure, []).extend(score["top1"])
            for measure, folds in by_measure.items():
                if len(folds) == len(floors.config["folds"]):
                    row.scores.setdefault(measure, {})[run.seed] = folds
        by_floor = {} if found is None else {name: one["top1"] for name, one in found["scores"].items()}
        return Table(floors=by_floor, rows=list(rows.values()), against=against)

    @property
    def measures(self) -> list[str]:
        """All measures, in the order of their first row."""
        return list(dict.fromkeys(measure for row in self.rows for measure in row.scores))

    def other(self, row: Row) -> Row | None:
        """The row of `against` at the same budget; that of random weights has none."""
        rows = (one for one in self.rows if one.method == self.against)
        return next((one for one in rows if one.flops in (row.flops, 0)), None)

    def markdown(self) -> str:
        """The tables of floors, scores and differences."""
        parts = [self._floors(), self._scores(), self._differences()]
        return "\n".join(part for part in parts if part)

    def _floors(self) -> str:
        lines = [
            f"| {name} | {statistics.mean(folds):.1f} ({_deviation(folds):.1f}) | "
            f"{', '.join(f'{fold:.1f}' for fold in folds)} |"
            for name, folds in self.floors.items()
        ]
        return _markdown(["floor", "mean (deviation over folds)", "folds"], lines)

    def _scores(self) -> str:
        lines = []
        for row in self.rows:
            costs = (
                f"{row.cost('cpu_s') / 60:.1f} | {row.cost('wall_s') / 60:.1f} | {row.cost('peak_gb'):.2f}"
            )
            seeds = len(row.costs)
            scores = " | ".join(_number(row.mean(measure), seeds) for measure in self.measures)
            lines.append(f"| {_budget(row)} | {row.method} | {seeds} | {row.steps} | {costs} | {scores} |")
        names = ["FLOPs", "method", "seeds", "steps", "CPU min", "wall min", "peak GB", *self.measures]
        return _markdown(names, lines)

    def _differences(self) -> str:
        lines = []
        for row in self.rows:
            other = self.other(row)
            if other is None or row is other:
                continue
            cells = [_difference(row.difference(other, measure)) for measure in self.measures]
            lines.append(f"| {_budget(row)} | {row.method} | {' | '.join(cells)} |")
        return _markdown(["FLOPs", f"method minus {self.against}", *self.measures], lines)

    def as_json(self) -> dict[str, Any]:
        """All scores by fold and seed, with their summaries."""
        rows = []
        for row in self.rows:
            other = self.other(row)
            summary = {measure: row.mean(measure) for measure in self.measures}
            pairs = {} if other is None or row is other else {
                measure: row.difference(other, measure) for measure in self.measures
            }  # fmt: skip
            rows.append({**asdict(row), "mean_and_deviation": summary, f"minus_{self.against}": pairs})
        return {"floors": self.floors, "rows": rows}


def _sum(costs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The cost of a pretraining with its teacher."""
    sums = {name: sum(cost[name] for cost in costs) for name in ("cpu_s", "wall_s")}
    return {**sums, "peak_gb": max(cost["peak_gb"] for cost in costs)}


def _markdown(names: Sequence[str], lines: Sequence[str]) -> str:
    """A table, or an empty text without lines."""
    if not lines:
        return ""
    return "\n".join([f"| {' | '.join(names)} |", f"|{'---|' * len(names)}", *lines]) + "\n"


def _budget(row: Row) -> str:
    return f"{row.flops:.2g}" if row.flops else "0"


def _number(found: tuple[float, float] | None, seeds: int) -> str:
    if found is None:
        return ""
    return f"{found[0]:.1f} ({found[1]:.1f})" if seeds > 1 else f"{found[0]:.1f}"


def _difference(found: dict[str, float] | None) -> str:
    if found is None:
        return ""
    counts = f"{found['higher']:.0f} of {found['pairs']:.0f}"
    return f"{found['mean']:+.1f} ({found['deviation']:.1f}; {counts})"


def _deviation(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0
