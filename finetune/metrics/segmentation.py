"""Metrics of temporal segmentation: edit score and segmental F1, as in MS-TCN (arXiv 1903.01945)."""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np


class Run(NamedTuple):
    """Consecutive frames of one class: from frame `start` to before frame `end`."""

    label: int
    start: int
    end: int


def runs(label_F: np.ndarray, *, ignore: int | None = None) -> list[Run]:
    """Divide a sequence of labels into runs of equal labels, without those of the class `ignore`."""
    label_F = np.asarray(label_F)
    borders = [0, *(np.flatnonzero(np.diff(label_F)) + 1).tolist(), len(label_F)]
    found = [Run(int(label_F[start]), start, end) for start, end in pairwise(borders) if end > start]
    return [run for run in found if run.label != ignore]


def edit_score(prediction_F: np.ndarray, label_F: np.ndarray, *, ignore: int | None = None) -> float:
    """Return 1 minus the Levenshtein distance of the two sequences of runs, divided by the longer length.

    It is 1 if neither sequence has a run.

    Args:
        ignore: class whose runs do not count, usually the background.
    """
    predicted = [run.label for run in runs(prediction_F, ignore=ignore)]
    true = [run.label for run in runs(label_F, ignore=ignore)]
    distance = list(range(len(true) + 1))
    for row, label in enumerate(predicted, 1):
        diagonal, distance[0] = distance[0], row
        for column, other in enumerate(true, 1):
            change = diagonal + (label != other)
            diagonal = distance[column]
            distance[column] = min(change, diagonal + 1, distance[column - 1] + 1)
    return 1 - distance[-1] / max(len(predicted), len(true), 1)


def segmental_f1(
    predictions: Sequence[np.ndarray],
    labels: Sequence[np.ndarray],
    *,
    overlap: float,
    ignore: int | None = None,
) -> float:
    """Return the F1 score of runs.

    A predicted run is right if it overlaps enough with a true run of its class. Every true run counts for one
    predicted run. Runs of all videos count together. The score is 0 if no run is right.

    Args:
        predictions, labels: classes of the frames of each video.
        overlap: lowest intersection over union of a right run.
        ignore: class whose runs do not count.
    """
    right = predicted_runs = true_runs = 0
    for prediction_F, label_F in zip(predictions, labels, strict=True):
        predicted, true = runs(prediction_F, ignore=ignore), runs(label_F, ignore=ignore)
        predicted_runs, true_runs = predicted_runs + len(predicted), true_runs + len(true)
        right += _matches(predicted, true, overlap)
    return 2 * right / max(predicted_runs + true_runs, 1)


def _matches(predicted: Sequence[Run], true: Sequence[Run], overlap: float) -> int:
    """Count predicted runs whose best true run of the same class overlaps enough and is not matched yet."""
    taken: set[int] = set()
    for run in predicted:
        iou = [_iou(run, other) if run.label == other.label else 0.0 for other in true]
        best = int(np.argmax(iou)) if iou else -1
        if best >= 0 and iou[best] > 0 and iou[best] >= overlap and best not in taken:
            taken.add(best)
    return len(taken)


def _iou(run: Run, other: Run) -> float:
    intersection = min(run.end, other.end) - max(run.start, other.start)
    return max(intersection, 0) / (max(run.end, other.end) - min(run.start, other.start))
