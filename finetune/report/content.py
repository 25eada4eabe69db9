"""Content of a run's page, by the names that the template uses."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kinemae.data_tools.report.figures import Histogram, time_text
from kinemae.data_tools.report.tables import flattened
from kinemae.finetune.report.calibration import calibration_text, confidence_histogram, reliability_chart
from kinemae.finetune.report.charts import Chart
from kinemae.finetune.report.checks import run_checks
from kinemae.finetune.report.classes import (
    ClassRow,
    Confusion,
    Shown,
    class_rows,
    confident_mistakes,
    confusion,
)
from kinemae.finetune.report.clips import open_clips, thumbnails
from kinemae.finetune.report.cost import cost_rows, parameter_counts, scaled, training_seconds
from kinemae.finetune.report.curves import best_validation, curves
from kinemae.finetune.report.labels import LabelRow, label_mistakes, label_rows
from kinemae.finetune.report.metric_names import metric
from kinemae.finetune.report.numbers import error_histograms, largest_errors, scatter_charts
from kinemae.finetune.report.outputs import ClassOutput, LabelsOutput, NumberOutput, Output
from kinemae.finetune.report.run_files import RunFiles
from kinemae.finetune.report.samples import outputs_of
from kinemae.finetune.report.scores import (
    Tile,
    headline_bars,
    interval_of,
    interval_text,
    score_rows,
    value_of,
)

_ADAPTED = {
    None: "encoder and head are trained",
    "full": "encoder and head are trained",
    "frozen": "the encoder is frozen and only the head is trained",
}
LIMITS = {"listed": 200}


@dataclass(frozen=True, kw_only=True)
class Part:
    """The sections about one output of the run."""

    name: str
    confusion: Confusion | None = None
    class_rows: tuple[ClassRow, ...] = ()
    label_rows: tuple[LabelRow, ...] = ()
    reliability: Chart | None = None
    calibration: str = ""
    confidence: Histogram | None = None
    scatters: tuple[Chart, ...] = ()
    errors: tuple[Histogram, ...] = ()
    mistakes: tuple[Shown, ...] = ()


def gather(run: RunFiles, *, pictures: int, validation: str | None) -> dict[str, Any]:
    """Collect the content of the page, and decode the clips that it shows.

    Args:
        pictures: number of mistakes shown for each output.
        validation: another place of the validation data.
    """
    outputs = outputs_of(run.result, run.samples)
    parts = [_part(output, pictures) for output in outputs]
    main_curves, more_curves = curves(run)
    source, note = open_clips(run.folder, run.result, validation)
    return {
        "run_name": run.name,
        "summary": _summary(run),
        "limits": LIMITS,
        "tiles": _tiles(run),
        "bars": headline_bars(run, outputs),
        "metric": metric(run.metric).title if run.metric else "",
        "is_minimized": bool(run.metric) and metric(run.metric).maximize is False,
        "checks": run_checks(run, outputs),
        "notes": run.notes,
        "scores": score_rows(run.result),
        "curves": main_curves,
        "more_curves": more_curves,
        "curve_note": _curve_note(run),
        "parts": parts,
        "thumbnails": thumbnails(source, [shown.key for part in parts for shown in part.mistakes]),
        "clip_note": note,
        "names": _names(run),
        "unreadable": [(str(each.get("key")), str(each.get("error"))) for each in _skipped(run)],
        "cost": cost_rows(run),
        "data": _data(run),
        "config": flattened(dict(run.config)) if run.config else [],
        "starts": [flattened(_start(start)) for start in run.starts],
    }


def _part(output: Output, pictures: int) -> Part:
    if isinstance(output, ClassOutput):
        return Part(
            name=output.name,
            confusion=confusion(output),
            class_rows=class_rows(output),
            reliability=reliability_chart(output),
            calibration=calibration_text(output),
            confidence=confidence_histogram(output),
            mistakes=tuple(confident_mistakes(output, most=pictures)),
        )
    if isinstance(output, LabelsOutput):
        return Part(
            name=output.name,
            label_rows=label_rows(output),
            mistakes=tuple(label_mistakes(output, most=pictures)),
        )
    assert isinstance(output, NumberOutput)
    return Part(
        name=output.name,
        scatters=tuple(scatter_charts(output)),
        errors=tuple(error_histograms(output)),
        mistakes=tuple(largest_errors(output, most=pictures)),
    )


def _summary(run: RunFiles) -> str:
    """Task, encoder and adaptation in a sentence."""
    encoder = run.setting("encoder")
    start = f"the encoder {Path(encoder).parent.name}/{Path(encoder).name}" if encoder else "random weights"
    if encoder and run.setting("weights") == "random":
        start += " with random weights"
    method = run.setting("adapt.method")
    adapted = _ADAPTED.get(method, f"the encoder is adapted by {method}")
    task = str(run.task.get("name", "classification"))
    return f"Fine-tuning report. Task: {task}; starts from {start}; {adapted}."


def _tiles(run: RunFiles) -> list[Tile]:
    tiles = []
    value = value_of(run.result, run.metric) if run.metric else None
    if run.metric:
        interval = interval_of(run.result, run.metric)
        about = metric(run.metric)
        tiles.append(
            Tile(name=about.title, value=about.text(value), note=interval_text(run.metric, interval))
        )
    if "videos" in run.result:
        skipped = len(_skipped(run))
        note = f"{skipped:,} unreadable" if skipped else "none unreadable"
        tiles.append(Tile(name="Scored videos", value=f"{run.result['videos']:,}", note=note))
    checkpoint = run.result.get("checkpoint") or {}
    if checkpoint.get("name"):
        note = f"after {checkpoint['steps']:,} steps" if checkpoint.get("steps") else ""
        tiles.append(Tile(name="Scored model", value=str(checkpoint["name"]), note=note))
    if run.metrics:
        best = best_validation(run)
        note = f"best validation after {best['step'] + 1:,}" if best is not None else ""
        tiles.append(Tile(name="Training steps", value=f"{len(run.metrics):,}", note=note))
        seconds = training_seconds(run)
        if seconds is not None:
            tiles.append(Tile(name="Training time", value=time_text(seconds)))
    if counts := parameter_counts(run.folder / "model"):
        tiles.append(Tile(name="Parameters", value=scaled(sum(counts.values()))))
    return tiles


def _skipped(run: RunFiles) -> Sequence[Any]:
    return [each for each in run.result.get("skipped", ()) if isinstance(each, dict)]


def _curve_note(run: RunFiles) -> str:
    epochs = run.setting("epochs")
    if not run.metrics or not isinstance(epochs, int | float):
        return ""
    return f"{len(run.metrics):,} steps; the config has {epochs:g} epochs."


def _names(run: RunFiles) -> dict[str, str]:
    """The original file of each sample."""
    return dict(zip(run.samples.keys, run.samples.names, strict=True)) if run.samples else {}


def _start(start: Mapping[str, Any]) -> dict[str, Any]:
    """The record of a start with its command as one line."""
    command = start.get("command")
    line = shlex.join(map(str, command)) if isinstance(command, list) else str(command)
    return {**start, "command": line}


def _data(run: RunFiles) -> list[tuple[str, str]]:
    rows = [
        (str(each.get("key")), f"{each.get('place')}, fingerprint {each.get('fingerprint')}")
        for each in run.inputs
    ]
    scored = run.result.get("data", {})
    if scored:
        place = next((value for key, value in scored.items() if key != "fingerprint"), None)
        text = f"{place}, fingerprint {scored.get('fingerprint')}"
        rows.append(("scored on", text))
    return rows
