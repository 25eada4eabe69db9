"""Sections about samples with several labels: average precision per class and surest mistakes."""

from dataclasses import dataclass

import numpy as np

from kinemae.finetune.metrics.multilabel import average_precisions
from kinemae.finetune.report.classes import Shown
from kinemae.finetune.report.outputs import LabelsOutput

_THRESHOLD = 0.5


@dataclass(frozen=True, kw_only=True)
class LabelRow:
    """A row of the table of classes.

    Attributes:
        floor: average precision of a random order, the fraction of positive samples.
    """

    name: str
    positives: int | None
    ap: float | None
    floor: float | None


def label_rows(output: LabelsOutput) -> tuple[LabelRow, ...]:
    """Average precision per class, lowest first; undefined ones are last."""
    if not len(output.keys):
        stated = output.result.get("per_class_ap") or {}
        counts = output.result.get("per_class_positives") or {}
        rows = [
            LabelRow(name=name, positives=counts.get(name), ap=stated[name], floor=None) for name in stated
        ]
    else:
        is_known_RY = ~np.isnan(output.target_RY)
        positives_Y = np.nansum(output.target_RY, axis=0)
        known_Y = np.maximum(is_known_RY.sum(axis=0), 1)
        ap_Y = average_precisions(output.probability_RY, output.target_RY)
        rows = [
            LabelRow(
                name=name,
                positives=int(positives_Y[at]),
                ap=None if np.isnan(ap_Y[at]) else float(ap_Y[at]),
                floor=float(positives_Y[at] / known_Y[at]),
            )
            for at, name in enumerate(output.classes)
        ]
    return tuple(sorted(rows, key=lambda row: 2.0 if row.ap is None else row.ap))


def label_mistakes(output: LabelsOutput, *, most: int) -> list[Shown]:
    """Samples with the surest wrong decision about a class."""
    if not len(output.keys):
        return []
    error_RY = np.where(np.isnan(output.target_RY), 0, np.abs(output.target_RY - output.probability_RY))
    worst_R = error_RY.argmax(axis=1)
    error_R = error_RY.max(axis=1)
    order = [at for at in np.argsort(-error_R, kind="stable")[:most].tolist() if error_R[at] > _THRESHOLD]
    return [
        Shown(
            key=output.keys[at],
            truth=_named(output, output.target_RY[at] > 0),
            guess=_named(output, output.probability_RY[at] >= _THRESHOLD),
            facts=f"{output.classes[worst_R[at]]}: predicted with "
            f"{100 * output.probability_RY[at, worst_R[at]]:.0f} %",
        )
        for at in order
    ]


def _named(output: LabelsOutput, chosen_Y: np.ndarray) -> str:
    return ", ".join(output.classes[at] for at in np.flatnonzero(chosen_Y)) or "none"
