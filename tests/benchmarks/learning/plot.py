"""Plot of top-1 against training FLOPs: one line per method, floors and random weights as levels."""

import statistics
from pathlib import Path

from matplotlib.figure import Figure

from tests.benchmarks.learning.report import Row, Table
from tests.benchmarks.learning.settings import PEER

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c564b", "#7f7f7f")
MARKERS = "osD^vPX"


def draw(table: Table, measure: str, path: Path) -> None:
    """Draw one measure; error bars are the standard deviation over seeds."""
    figure = Figure(figsize=(9, 5.5), layout="constrained")
    axes = figure.subplots()
    names = dict.fromkeys(row.method for row in table.rows if row.flops and row.mean(measure))
    best = sorted(names, key=lambda name: -_last(table, name, measure))
    for number, name in enumerate(best):
        rows = [row for row in table.rows if row.method == name and row.flops]
        points = [(row.flops, *mean) for row in rows if (mean := row.mean(measure)) is not None]
        flops, means, deviations = zip(*points, strict=True)
        is_peer = name == PEER
        axes.errorbar(
            flops,
            means,
            yerr=deviations,
            label=f"{name} ({means[-1]:.1f})",
            color="black" if is_peer else COLOURS[number % len(COLOURS)],
            marker=MARKERS[number // len(COLOURS) % len(MARKERS)],
            linestyle="-" if is_peer else ("-", "--", ":")[number // len(COLOURS) % 3],
            linewidth=2.5 if is_peer else 1.4,
            markersize=5,
            capsize=3,
        )
    levels = {name: statistics.mean(folds) for name, folds in table.floors.items()}
    levels |= {row.method: mean[0] for row in table.rows if not row.flops and (mean := row.mean(measure))}
    for number, (name, level) in enumerate(levels.items()):
        style = ("--", ":", "-.")[number % 3]
        axes.axhline(level, color="grey", linestyle=style, linewidth=1, label=f"{name} ({level:.1f})")
    axes.set_xscale("log")
    budgets = sorted({row.flops for row in table.rows if row.flops})
    axes.set_xticks(budgets, [f"{budget:.2g}" for budget in budgets])
    axes.set_xticks([], minor=True)
    lowest = [mean[0] - mean[1] for row in table.rows if (mean := row.mean(measure)) is not None]
    axes.set_ylim(bottom=min(lowest, default=0.0) - 2)  # lower floors stand in the legend only
    axes.set_xlabel("training FLOPs of one pretraining")
    axes.set_ylabel(f"top-1 in per cent ({measure})")
    axes.grid(alpha=0.25)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=9)
    figure.savefig(path, dpi=130)


def _last(table: Table, name: str, measure: str) -> float:
    """The mean of a method at its largest budget."""

    def flops(row: Row) -> float:
        return row.flops

    rows = [row for row in table.rows if row.method == name and row.mean(measure) is not None]
    found = max(rows, key=flops).mean(measure)
    assert found is not None
    return found[0]
