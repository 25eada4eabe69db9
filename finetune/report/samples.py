"""Predictions of single samples, and the outputs that they hold."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kinemae.data_tools.command import CheckpointError
from kinemae.finetune.evaluation.predictions import read_predictions
from kinemae.finetune.report.outputs import ClassOutput, LabelsOutput, NumberOutput, Output


@dataclass(frozen=True, kw_only=True)
class Samples:
    """The table of predictions, one row per sample."""

    keys: tuple[str, ...]
    names: tuple[str, ...]
    groups: tuple[str, ...]
    errors: tuple[str, ...]
    columns: Mapping[str, list[Any]]


class _Rows(NamedTuple):
    keys: tuple[str, ...]
    groups: tuple[str, ...]
    truth: list[Any]
    guess: list[Any]


def read_samples(path: Path) -> Samples | None:
    """Read a table of predictions; None if it is missing or damaged."""
    try:
        columns = read_predictions(path).columns
    except (OSError, CheckpointError):
        return None
    return Samples(
        keys=tuple(columns["key"]),
        names=tuple(columns["name"]),
        groups=tuple(columns["group"]),
        errors=tuple(columns["error"]),
        columns=columns,
    )


def outputs_of(result: Mapping[str, Any], samples: Samples | None) -> list[Output]:
    """The outputs of a run, one per column of a multi-task; empty for a task without such outputs."""
    if not isinstance(result.get("columns"), dict):
        found = _output("", result, samples)
        return [] if found is None else [found]
    outputs = [_output(name, part, samples) for name, part in result["columns"].items()]
    return [each for each in outputs if each is not None]


def _output(name: str, result: Mapping[str, Any], samples: Samples | None) -> Output | None:
    """The output with these scores; its columns of the table begin with its name and a slash."""
    kind = next((kind for key, kind in _KINDS.items() if key in result), None)
    if kind is None:
        return None
    target, make = kind
    prefix = f"{name}/" if name else ""
    return make(name, result, _rows(samples, f"{prefix}{target}", f"{prefix}prediction"))


def _rows(samples: Samples | None, target: str, prediction: str) -> _Rows:
    """The samples with a true value and a prediction."""
    if samples is None or not {target, prediction} <= set(samples.columns):
        return _Rows((), (), [], [])
    truth, guess = samples.columns[target], samples.columns[prediction]
    rows = [at for at, value in enumerate(guess) if value is not None and not _is_missing(truth[at])]
    return _Rows(
        tuple(samples.keys[at] for at in rows),
        tuple(samples.groups[at] for at in rows),
        [truth[at] for at in rows],
        [guess[at] for at in rows],
    )


def _is_missing(truth: Any) -> bool:
    return truth is None or (isinstance(truth, int) and truth < 0)


def _classes(name: str, result: Mapping[str, Any], rows: _Rows) -> ClassOutput:
    classes = tuple(result.get("classes", ()))
    return ClassOutput(
        name=name,
        classes=classes,
        result=result,
        keys=rows.keys,
        groups=rows.groups,
        label_R=np.array(rows.truth, dtype=np.int64),
        probability_RY=np.array(rows.guess, dtype=np.float64).reshape(-1, max(1, len(classes))),
        is_ordinal="mae_classes" in result,
    )


def _labels(name: str, result: Mapping[str, Any], rows: _Rows) -> LabelsOutput:
    classes = tuple(result.get("classes", ()))
    target_RY = np.array(rows.truth, dtype=np.float64).reshape(-1, max(1, len(classes)))
    return LabelsOutput(
        name=name,
        classes=classes,
        result=result,
        keys=rows.keys,
        groups=rows.groups,
        target_RY=np.where(target_RY < 0, np.nan, target_RY),
        probability_RY=np.array(rows.guess, dtype=np.float64).reshape(target_RY.shape),
    )


def _numbers(name: str, result: Mapping[str, Any], rows: _Rows) -> NumberOutput:
    names = tuple(result.get("per_value", ()))
    target_RV = np.array(rows.truth, dtype=np.float64).reshape(-1, max(1, len(names)))
    return NumberOutput(
        name=name,
        names=names or ("",),
        result=result,
        keys=rows.keys,
        groups=rows.groups,
        target_RV=target_RV,
        prediction_RV=np.array(rows.guess, dtype=np.float64).reshape(target_RV.shape),
    )


# By a key of the scores that only this kind of output has: column of the true values, and its class.
_KINDS: dict[str, tuple[str, Callable[[str, Mapping[str, Any], _Rows], Output]]] = {
    "mae_classes": ("label", _classes),
    "confusion_matrix": ("label", _classes),
    "per_class_ap": ("labels", _labels),
    "per_value": ("value", _numbers),
}
