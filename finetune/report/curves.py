"""Curves of a run: loss, metrics and learning rate over the steps, with the validations during training."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from kinemae.finetune.report.charts import Chart, Rule, Series, averaged, draw_chart
from kinemae.finetune.report.metric_names import is_number, metric
from kinemae.finetune.report.run_files import RunFiles

# Values of metrics.jsonl with a chart; all others describe the step, not the learning.
_TRAINING_ONLY = ("lr", "grad_norm")
_NO_CURVE = (
    *("step", "epoch", "samples", "videos", "skipped_clips", "skipped", "time_s", "seconds", "clips_per_s"),
    *("data_wait_fraction", "tflops_per_device", "mfu", "memory_gb", "slowest_rank", "slowest_ratio"),
    *_TRAINING_ONLY,
)
# A validation metric that is drawn into the chart of the training's metric.
_SAME_CHART = {"top1": "accuracy"}


def curves(run: RunFiles) -> tuple[list[Chart], list[Chart]]:
    """The charts of a run: the main ones, and the rest.

    The main ones are the loss, the training's metrics, the metric of the selection, and the learning rate.
    """
    rules, last = best_rules(run), _last_step(run)
    trained, validated = _keys(run.metrics), _keys(run.validation)
    alone = [key for key in validated if _SAME_CHART.get(key, key) not in trained]
    charts: dict[str, Chart | None] = {}
    for key in [*trained, *alone]:
        partners = [name for name in validated if _SAME_CHART.get(name, name) == key]
        series = [_training(run, key)] if key in trained else []
        series += [_validation(run, name, colour=number + 1) for number, name in enumerate(partners)]
        charts[key] = _chart(
            key, series, rules, per_point=_per_point(run) if key in trained else 1, last=last
        )
    for key in _TRAINING_ONLY:
        series = [_training(run, key)] if any(key in line for line in run.metrics) else []
        charts[key] = _chart(key, series, (), per_point=_per_point(run), last=last)
    main = {*trained, "loss", "lr", selection_metric(run)}
    drawn = {key: chart for key, chart in charts.items() if chart is not None}
    return (
        [chart for key, chart in drawn.items() if key in main],
        [chart for key, chart in drawn.items() if key not in main],
    )


def selection_metric(run: RunFiles) -> str:
    """The metric by which the best model was selected."""
    return str(run.setting("validate.metric") or run.metric)


def _last_step(run: RunFiles) -> float:
    return float(max((line["step"] for line in (*run.metrics, *run.validation)), default=0))


def best_rules(run: RunFiles) -> list[Rule]:
    """Vertical lines at the best validation and at an early stop."""
    rules = []
    best = best_validation(run)
    if best is not None:
        rules.append(Rule(x=float(best["step"]), text="best"))
    stopped = next((line for line in reversed(run.validation) if line.get("stopped")), None)
    if stopped is not None:
        rules.append(Rule(x=float(stopped["step"]), text="early stop"))
    return rules


def best_validation(run: RunFiles) -> Mapping[str, Any] | None:
    """The first validation with the best value of the selection's metric; None without any."""
    key = selection_metric(run)
    lines = [line for line in run.validation if is_number(line.get(key))]
    if not lines:
        return None
    pick: Callable[..., Any] = min if metric(key).maximize is False else max
    return dict(pick(lines, key=lambda line: line[key]))


def _keys(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """Keys of numbers with a chart, in the order of their first line."""
    found = {key: None for line in lines for key, value in line.items() if is_number(value)}
    return [key for key in found if key not in _NO_CURVE]


def _per_point(run: RunFiles) -> int:
    return averaged(range(len(run.metrics)), range(len(run.metrics)))[2]


def _training(run: RunFiles, key: str) -> Series:
    step, value = _column(run.metrics, key)
    x, y, _ = averaged(step, value)
    return Series(name="training", x=x, y=_shown(key, y))


def _validation(run: RunFiles, key: str, *, colour: int) -> Series:
    step, value = _column(run.validation, key)
    shown = _shown(key, np.asarray(value))
    texts = [
        f"step {number:,.0f}: {metric(key).text(each)}" for number, each in zip(step, value, strict=True)
    ]
    return Series(name="validation", x=step, y=shown, colour=colour, kind="dotted", texts=texts)


def _column(lines: Sequence[Mapping[str, Any]], key: str) -> tuple[list[float], list[float]]:
    kept = [line for line in lines if is_number(line.get(key)) and math.isfinite(float(line[key]))]
    return [float(line["step"]) for line in kept], [float(line[key]) for line in kept]


def _shown(key: str, values: np.ndarray) -> np.ndarray:
    return np.array([metric(key).shown(value) for value in values.tolist()])


def _chart(
    key: str, series: Sequence[Series], rules: Sequence[Rule], *, per_point: int, last: float
) -> Chart | None:
    about = metric(key)
    note = about.meaning[:1].upper() + about.meaning[1:] + ("." if about.meaning else "")
    if per_point > 1:
        note += f" A point of the training's line is the mean of {per_point} steps."
    return draw_chart(
        about.title,
        series,
        x_label="training step",
        y_label=about.label,
        note=note.strip(),
        rules=rules,
        x_range=(0, last),
        y_range=(0, 100) if about.is_fraction else None,
    )
