"""Compare runs: a table of their results, with paired tests on the samples that both scored."""

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kinemae.data_tools.command import CheckpointError, DataError
from kinemae.finetune.evaluation.predictions import FILE, PredictionTable, read_predictions
from kinemae.finetune.metrics.paired import mcnemar, paired_bootstrap
from kinemae.pretrain.folder_kinds import FINETUNING, MODEL, kind_of_folder

RESULT_NAME = "result.json"

_HEADINGS = ("run", "encoder", "adapt", "head", "lr", "videos")
_FIRST_NUMBER = 4  # columns from here on are right-aligned
_FRACTIONS = ("top1", "top5", "mean_class_accuracy", "balanced_accuracy", "joint_accuracy")


def run_compare(arguments: argparse.Namespace) -> None:
    """Run `kinemae finetune compare RUN RUN ...`."""
    results = read_results(arguments.runs)
    sys.stdout.write(json.dumps(results, ensure_ascii=False) if arguments.json else table(results))
    sys.stdout.write("\n")


def read_results(folders: Sequence[str | Path]) -> list[dict[str, Any]]:
    """Read the results of runs and compare each with the first run.

    Added keys: "folder", "name"; "difference" of the metric to the first run; "paired", see `paired_test`,
    None for the first run and for runs without predictions.

    Raises:
        CheckpointError: a folder has no valid result or damaged predictions.
        DataError: the runs have other metrics or were scored on other data than the first.
    """
    results = [_read(Path(folder)) for folder in folders]
    first = results[0]
    metric = _metric(first)
    for result in results:
        if _metric(result) != metric:
            raise DataError(
                f"{result['folder']}: expected the metric {metric} of {first['folder']}, got "
                f"{_metric(result)}; fix: compare runs of one task"
            )
        _check_same_data(first, result)
        result["difference"] = result[metric] - first[metric]
    tables = [_predictions(Path(result["folder"])) for result in results]
    base = tables[0]
    for result, other in zip(results, tables, strict=True):
        result["paired"] = None
        if result is not first and base is not None and other is not None:
            result["paired"] = paired_test(base, other, metric)
    return results


def paired_test(first: PredictionTable, second: PredictionTable, metric: str) -> dict[str, Any] | None:
    """Test the difference of two runs on the same samples, second minus first.

    The score of a sample is that of the metric if the metric is a mean over samples ("top1", "top5", "mae",
    "loss"), otherwise the first of these that both have. Groups are resampled as a whole.

    Returns:
        "score": its name; the keys of `paired_bootstrap`; "groups"; for "top1" without groups "mcnemar". None
        if no sample has both scores.

    Raises:
        DataError: the runs scored other samples.
    """
    ours_K, theirs_K = first.columns["key"], second.columns["key"]
    if ours_K != theirs_K:
        shared = len(set(ours_K) & set(theirs_K))
        raise DataError(
            f"{FILE}: expected the same samples in both runs, got {len(ours_K)} and {len(theirs_K)} samples, "
            f"{shared} in common; fix: score both with one data.validation and evaluate.data=validation"
        )
    ours, others = first.scores(), second.scores()
    common = [name for name in ours if name in others]
    name = metric if metric in common else common[0]
    known_R = ~(np.isnan(ours[name]) | np.isnan(others[name]))
    if not known_R.any():
        return None
    groups = first.groups
    found = {"score": name, **paired_bootstrap(ours[name], others[name], groups)}
    found["groups"] = None if groups is None else len(set(groups))
    if name.split("/")[-1] == "top1" and groups is None:
        found["mcnemar"] = mcnemar(ours[name][known_R], others[name][known_R])
    return found


def table(results: Sequence[dict[str, Any]]) -> str:
    """Format the results as an aligned table with one line per run."""
    metric = _metric(results[0])
    title = {"top1": "top-1 %", "top5": "top-5 %"}.get(metric, metric + " %" * (metric in _FRACTIONS))
    headings = [*_HEADINGS, title, "95 % interval", "difference"]
    rows = [[*_row(result, metric)] for result in results]
    if any(result.get("paired") for result in results):
        headings += ["paired interval", "p"]
        rows = [[*row, *_paired_cells(result)] for row, result in zip(rows, results, strict=True)]
    rows.insert(0, headings)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, ["-" * width for width in widths])
    lines = []
    for row in rows:
        cells = zip(row, widths, range(len(row)), strict=True)
        lines.append(
            "  ".join(
                text.rjust(width) if i >= _FIRST_NUMBER else text.ljust(width) for text, width, i in cells
            )
        )
    other = {result["paired"]["score"] for result in results if result.get("paired")} - {metric}
    lines += [f"Paired interval and p are of {name}." for name in sorted(other)]
    return "\n".join(line.rstrip() for line in lines)


def _metric(result: dict[str, Any]) -> str:
    return str(result.get("metric", "top1"))


def _check_same_data(first: dict[str, Any], other: dict[str, Any]) -> None:
    """Reject results on other data; results without a fingerprint pass."""
    ours, theirs = (result.get("data", {}).get("fingerprint") for result in (first, other))
    if ours != theirs and None not in (ours, theirs):
        raise DataError(
            f"{other['folder']}: expected a score on the data of {first['folder']} (fingerprint {ours}), got "
            f"one on data with fingerprint {theirs}; fix: kinemae finetune evaluate "
            f"{shlex.quote(other['folder'])} data.validation=FOLDER evaluate.data=validation"
        )


def _predictions(folder: Path) -> PredictionTable | None:
    try:
        return read_predictions(folder / FILE)
    except FileNotFoundError:
        return None


def _read(folder: Path) -> dict[str, Any]:
    path = folder / RESULT_NAME
    evaluate = f"`kinemae finetune evaluate {shlex.quote(str(folder))}`"
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        _row({**result, "name": "", "difference": 0.0}, _metric(result))
    except OSError as error:
        kind = kind_of_folder(folder)
        if kind not in (FINETUNING, MODEL):
            probes = sorted(str(path.parent) for path in folder.glob(f"*/{RESULT_NAME}"))
            fix = probes[0] if probes else "the run_dir of a `finetune train`, or METHOD/ in that of a probe"
            raise CheckpointError(
                f"{folder}: expected a fine-tuning run with its result, got {kind}; fix: give {fix}"
            ) from error
        raise CheckpointError(
            f"{path}: expected a result, got no such file; fix: finish the run, or run {evaluate}"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path}: expected a result of this version, got another file; fix: run {evaluate}"
        ) from error
    return {"name": folder.name, "folder": str(folder), **result}


def _row(result: dict[str, Any], metric: str) -> tuple[str, ...]:
    run = result["run"]
    interval = result["top1_ci95"] if metric == "top1" else result.get(f"{metric}_ci95")
    encoder = "from scratch" if run["encoder"] is None else str(run["encoder"])
    return (
        result["name"],
        f"{encoder}, random weights" if run["encoder"] and run.get("weights") == "random" else encoder,
        run["adapt"],
        run["head"],
        f"{run['lr']:g}",
        str(result["videos"]),
        _number(result[metric], metric),
        _interval(interval, metric),
        _number(result["difference"], metric, signed=True),
    )


def _paired_cells(result: dict[str, Any]) -> tuple[str, str]:
    paired = result.get("paired")
    if paired is None:
        return "-", "-"
    p_value = paired["p_value"]
    text = "-" if p_value is None else "< 0.001" if p_value < 0.001 else f"{p_value:.3f}"
    return _interval(paired["ci95"], paired["score"], signed=True), text


def _interval(interval: Sequence[float] | None, name: str, *, signed: bool = False) -> str:
    if interval is None:
        return "-"
    between = " to " if signed else " - "
    return between.join(_number(end, name, signed=signed) for end in interval)


def _number(value: float, name: str, *, signed: bool = False) -> str:
    if name.split("/")[-1] in _FRACTIONS:
        return f"{100 * value:+.1f}" if signed else f"{100 * value:.1f}"
    return f"{value:+.4g}" if signed else f"{value:.4g}"
