"""Confidence intervals of a result, and scores in which unreadable videos count as wrong."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from kinemae.finetune.evaluation.predictions import PredictionTable
from kinemae.finetune.metrics.arrays import mean, ratio
from kinemae.finetune.metrics.classification import class_metrics, confusion_matrix
from kinemae.finetune.metrics.intervals import bootstrap, bootstrap_mean, group_numbers

MIN_GROUPS = 5
"""Smallest number of groups for an interval by group: a bootstrap of 2 groups has only 3 different means."""


def add_uncertainty(result: dict[str, Any], table: PredictionTable) -> dict[str, Any]:
    """Return a result with the 95 % intervals of its metrics and "counting_skipped".

    "METRIC_ci95" is [low, high]. Where at least `MIN_GROUPS` groups of samples exist, whole groups are drawn.
    Otherwise `top1_ci95` remains Wilson's interval, and the others draw single samples. "interval" names the
    method.
    """
    groups = table.groups
    errors = table.columns["error"]
    readable = [group for group, error in zip(groups or [], errors, strict=False) if not error]
    count = group_numbers(readable, len(readable))[1]
    by_group = groups if count >= MIN_GROUPS else None
    intervals = _intervals(result, table, by_group)
    parts = result.get("columns")
    if isinstance(parts, Mapping):
        columns = {name: {**part, **_part_of(intervals, f"{name}/")} for name, part in parts.items()}
        for name, part in columns.items():
            part["counting_skipped"] = counting_skipped(part, table, f"{name}/")
        result = {**result, "columns": columns}
    else:
        result = {**result, "counting_skipped": counting_skipped(result, table, "")}
    method = "bootstrap of groups" if by_group else "Wilson for top1, bootstrap of samples for others"
    interval = {"confidence": 0.95, "method": method, "groups": count or None}
    return {**result, **_part_of(intervals, ""), "interval": interval}


def counting_skipped(part: Mapping[str, Any], table: PredictionTable, prefix: str) -> dict[str, float] | None:
    """Return accuracies in which each unreadable sample counts as wrong; None for outputs without classes."""
    if f"{prefix}predicted" not in table.columns or "top1" not in part:
        return None
    label_R, score_R = table.labels(prefix), table.scores()
    is_known_R = label_R >= 0
    found = {}
    for name in ("top1", "top5"):
        of_samples = score_R.get(f"{prefix}{name}")
        if of_samples is not None:
            found[name] = float(np.nan_to_num(of_samples[is_known_R]).mean())
    right_R = np.nan_to_num(score_R[f"{prefix}top1"][is_known_R])
    size = int(label_R.max()) + 1
    total_Y = np.bincount(label_R[is_known_R], minlength=size)
    recall = mean(ratio(np.bincount(label_R[is_known_R], weights=right_R, minlength=size), total_Y))
    return {**found, "mean_class_accuracy": recall or 0.0}


def _intervals(
    result: Mapping[str, Any], table: PredictionTable, groups: list[str] | None
) -> dict[str, list[float] | None]:
    """Return the intervals by the prefixed name of their key."""
    found: dict[str, list[float] | None] = {}
    for name, score_R in table.scores().items():
        is_wilson = name.split("/")[-1] == "top1" and groups is None
        if not is_wilson and not np.isnan(score_R).all():
            found[f"{name}_ci95"] = bootstrap_mean(score_R, groups)
    for prefix in table.outputs():
        part = result if not prefix else result["columns"][prefix.removesuffix("/")]
        if f"{prefix}predicted" in table.columns and "f1" in part:
            found |= _of_class_means(table, prefix, len(part["classes"]), groups)
    return found


def _of_class_means(
    table: PredictionTable, prefix: str, classes: int, groups: list[str] | None
) -> dict[str, list[float] | None]:
    """Intervals of the means over classes."""
    label_R, guess_R = (
        table.labels(prefix),
        np.array([-1 if guess is None else guess for guess in table.columns[f"{prefix}predicted"]]),
    )
    known = np.flatnonzero((label_R >= 0) & (guess_R >= 0))
    of_known = None if groups is None else [groups[i] for i in known]
    found = {}
    for name, key in (("recall", "mean_class_accuracy"), ("f1", "f1")):

        def metric(rows: np.ndarray, name: str = name) -> float | None:
            chosen = known[rows]
            return mean(
                class_metrics(confusion_matrix(guess_R[chosen], label_R[chosen], classes=classes))[name]
            )

        found[f"{prefix}{key}_ci95"] = bootstrap(metric, len(known), of_known)
    found[f"{prefix}balanced_accuracy_ci95"] = found[f"{prefix}mean_class_accuracy_ci95"]
    return found


def _part_of(intervals: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Select the intervals of an output; without a prefix those of the whole result."""
    if not prefix:
        return {name: value for name, value in intervals.items() if "/" not in name}
    return {name.removeprefix(prefix): value for name, value in intervals.items() if name.startswith(prefix)}
