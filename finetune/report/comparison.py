"""Content of the page that compares runs, by the names that the template uses."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kinemae.data_tools.report.figures import time_text
from kinemae.finetune.report.charts import Chart, Series, averaged, draw_chart
from kinemae.finetune.report.clips import open_clips, thumbnails
from kinemae.finetune.report.cost import parameter_counts, scaled, training_seconds
from kinemae.finetune.report.differences import class_differences, differences, one_sided
from kinemae.finetune.report.groups import Group, differing_keys, group_by_seed, unique_names
from kinemae.finetune.report.metric_names import Metric, is_number, metric
from kinemae.finetune.report.run_files import RunFiles
from kinemae.finetune.report.samples import outputs_of
from kinemae.finetune.report.scores import Bar, bar, floor_values, interval_of, interval_text, value_of

_PICTURES = 6
_TABLE_METRICS = 4


@dataclass(frozen=True, kw_only=True)
class RunRow:
    """A row of the table of runs."""

    name: str
    group: str
    score: str
    interval: str
    value: float | None
    cells: tuple[tuple[str, Any], ...]


def gather_comparison(runs: Sequence[RunFiles]) -> dict[str, Any]:
    """Collect the content of the page, and decode the clips that it shows."""
    groups, key = group_by_seed(runs), next((run.metric for run in runs if run.metric), "")
    names = list(dict.fromkeys(name for group in groups for name in group.outputs()))
    sides = {name: one_sided(groups, name, most=_PICTURES) for name in names} if len(groups) > 1 else {}
    source, note = open_clips(runs[0].folder, runs[0].result)
    shown = [key for found in sides.values() for side in found for key in side.keys]
    about = metric(key) if key else None
    return {
        "title": f"Comparison of {len(runs)} runs",
        "metric": about,
        "groups": groups,
        "bars": _bars(groups, key) if key else [],
        "runs": _run_rows(runs, groups, key),
        "columns": _columns(),
        "seeds": [_seed_row(group, key, about) for group in groups if about and len(group.runs) > 1],
        "curves": _curves(groups, key),
        "differences": differences(groups),
        "classes": {name: class_differences(groups, name) for name in names},
        "sides": {name: found for name, found in sides.items() if found},
        "thumbnails": thumbnails(source, shown),
        "clip_note": note,
        "names": _sample_names(runs),
        "keys": differing_keys(runs),
        "run_names": unique_names(runs),
        "notes": [
            (name, text)
            for name, run in zip(unique_names(runs), runs, strict=True)
            for text in run.notes.values()
        ],
    }


def _bars(groups: Sequence[Group], key: str) -> list[Bar]:
    """One bar per group: a single run with its interval, or the mean with the range over the seeds."""
    values = {group.name: group.values(key) for group in groups}
    first = groups[0].runs[0]
    floor_levels = floor_values(first.result, key, outputs_of(first.result, first.samples))
    every = [abs(value) for each in values.values() for value in each] + list(floor_levels.values())
    limit = 1.0 if metric(key).is_fraction else max(every, default=1.0) or 1.0
    bars = []
    for number, group in enumerate(groups):
        if found := values[group.name]:
            ends = (min(found), max(found)) if len(found) > 1 else interval_of(group.runs[0].result, key)
            mean = float(np.mean(found))
            bars.append(bar(group.name, key, mean, ends, limit=limit, colour=number % 5))
    return bars + [
        bar(name, key, level, limit=limit, colour=5, is_floor=True) for name, level in floor_levels.items()
    ]


def _columns() -> tuple[str, ...]:
    return ("encoder", "adapt", "head", "lr", "epochs", "seed", "parameters", "training time")


def _run_rows(runs: Sequence[RunFiles], groups: Sequence[Group], key: str) -> list[RunRow]:
    of_run = {id(run): group.name for group in groups for run in group.runs}
    rows = []
    for name, run in zip(unique_names(runs), runs, strict=True):
        value = value_of(run.result, key) if key else None
        interval = interval_of(run.result, key) if key else None
        rows.append(
            RunRow(
                name=name,
                group=of_run[id(run)],
                value=value,
                score="no score" if value is None else metric(key).text(value),
                interval=interval_text(key, interval).removeprefix("95 % interval "),
                cells=_cells(run),
            )
        )
    return rows


def _cells(run: RunFiles) -> tuple[tuple[str, Any], ...]:
    """Texts of `_columns` with the values to sort by."""
    counts, seconds = parameter_counts(run.folder / "model"), training_seconds(run)
    encoder = str(run.setting("encoder") or "none")
    if run.setting("weights") == "random":
        encoder += ", random weights"
    settings = [run.setting(key) for key in ("adapt.method", "head.name", "optim.lr", "epochs", "seed")]
    total = sum(counts.values())
    return (
        (encoder, encoder),
        *((("" if value is None else str(value)), value) for value in settings),
        (scaled(total) if total else "", total),
        (time_text(seconds) if seconds else "", seconds or 0),
    )


def _seed_row(group: Group, key: str, about: Metric) -> tuple[str, int, str, str, str]:
    """Group, number of runs, mean, standard deviation and range of the score."""
    found = group.values(key)
    if not found:
        return group.name, len(group.runs), "no score", "", ""
    spread = about.text(float(np.std(found, ddof=1))) if len(found) > 1 else ""
    ends = f"{about.text(min(found))} to {about.text(max(found))}"
    return group.name, len(found), about.text(float(np.mean(found))), spread, ends


def _curves(groups: Sequence[Group], key: str) -> list[Chart]:
    """The loss of training, and the metric of the validations, of all groups."""
    wanted = [("metrics", "loss", "Training loss"), ("validation", key, "Validation during training")]
    if any("accuracy" in line for group in groups for run in group.runs for line in run.metrics[:1]):
        wanted.insert(1, ("metrics", "accuracy", "Training accuracy"))
    charts = []
    for source, name, title in wanted:
        series = [_group_series(group, source, name, number) for number, group in enumerate(groups)]
        about = metric(name)
        note = "A band is the range over the seeds." if any(len(group.runs) > 1 for group in groups) else ""
        charts.append(
            draw_chart(
                title,
                [each for each in series if each is not None],
                x_label="training step",
                y_label=about.label,
                note=note,
                y_range=(0, 100) if about.is_fraction else None,
            )
        )
    return [chart for chart in charts if chart is not None]


def _group_series(group: Group, source: str, name: str, number: int) -> Series | None:
    """The mean curve over the runs of a group at the steps that all of them have."""
    curves = [_curve(getattr(run, source), name) for run in group.runs]
    curves = [curve for curve in curves if curve]
    if not curves:
        return None
    steps = [step for step in curves[0] if all(step in curve for curve in curves)]
    values_XN = np.array([[curve[step] for step in steps] for curve in curves])
    lines = [
        averaged(steps, values.tolist())
        for values in (values_XN.mean(axis=0), values_XN.min(axis=0), values_XN.max(axis=0))
    ]
    scale = 100.0 if metric(name).is_fraction else 1.0
    return Series(
        name=group.name,
        x=lines[0][0],
        y=scale * lines[0][1],
        colour=number % 5,
        kind="dotted" if source == "validation" else "line",
        low=scale * lines[1][1] if len(curves) > 1 else None,
        high=scale * lines[2][1] if len(curves) > 1 else None,
    )


def _curve(lines: Sequence[Mapping[str, Any]], name: str) -> dict[float, float]:
    return {float(line["step"]): float(line[name]) for line in lines if is_number(line.get(name))}


def _sample_names(runs: Sequence[RunFiles]) -> dict[str, str]:
    """The original file of each sample."""
    tables = [run.samples for run in runs if run.samples is not None]
    return {key: name for table in tables for key, name in zip(table.keys, table.names, strict=True)}
