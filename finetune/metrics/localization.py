"""Metrics of temporal localization: mean average precision over tIoU thresholds, and average recall.

They follow the evaluation of ActivityNet (https://github.com/activitynet/ActivityNet). A detection is right
if its temporal intersection over union (tIoU) with a true segment of its class reaches the threshold, and no
better detection of the video has taken this segment. AP is the area under the interpolated precision.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from kinemae.finetune.metrics.arrays import as_number, mean

RECALL_TIOUS = tuple(np.linspace(0.5, 0.95, 10).round(2).tolist())
PROPOSALS = (1, 10, 100)


class Detections(NamedTuple):
    """Segments of one video: start and end in seconds, score and class; true segments have a score of 1."""

    time_N2: np.ndarray
    score_N: np.ndarray
    class_N: np.ndarray

    def take(self, number_X: np.ndarray) -> "Detections":
        """Choose some of them."""
        return Detections(self.time_N2[number_X], self.score_N[number_X], self.class_N[number_X])

    @staticmethod
    def join(parts: Sequence["Detections"]) -> "Detections":
        """Concatenate several."""
        empty = Detections(np.zeros((0, 2)), np.zeros(0), np.zeros(0, dtype=np.int64))
        return Detections(*(np.concatenate(columns) for columns in zip(empty, *parts, strict=True)))


def localization_metrics(
    detections: Sequence[Detections],
    truths: Sequence[Detections],
    classes: Sequence[str],
    *,
    tious: Sequence[float],
) -> dict[str, Any]:
    """Compute the metrics of all videos, as JSON.

    Returns:
        "map": mean over thresholds and over the classes with a true segment. "map_at": the mean over classes
        per threshold. "per_class_ap": the mean over thresholds per class, None without a true segment.
        "average_recall_at": per number of proposals, see `average_recall`.
    """
    ap_YX = np.stack(
        [class_average_precisions(detections, truths, number, tious=tious) for number in range(len(classes))]
    )
    is_known_Y = ~np.isnan(ap_YX).any(axis=1)
    ap_Y = np.where(is_known_Y, np.nan_to_num(ap_YX).mean(axis=1), np.nan)
    map_X = [mean(ap_YX[is_known_Y, number]) for number in range(len(tious))]
    return {
        "map": mean(ap_Y),
        "map_at": dict(zip(map("{:g}".format, tious), map_X, strict=True)),
        "average_recall_at": {str(n): average_recall(detections, truths, proposals=n) for n in PROPOSALS},
        "per_class_ap": dict(zip(classes, map(as_number, ap_Y), strict=True)),
    }


def class_average_precisions(
    detections: Sequence[Detections], truths: Sequence[Detections], number: int, *, tious: Sequence[float]
) -> np.ndarray:
    """Return the average precision of one class at each threshold; NaN if it has no true segment."""
    hits, scores, true_segments = [], [], 0
    for found, truth in zip(detections, truths, strict=True):
        found = found.take(np.flatnonzero(found.class_N == number))
        found = found.take(np.argsort(-found.score_N, kind="stable"))
        true_E2 = truth.time_N2[truth.class_N == number]
        true_segments += len(true_E2)
        iou_NE = intersection_over_union(found.time_N2, true_E2)
        hits.append(np.stack([_hits(iou_NE, threshold) for threshold in tious], axis=1))
        scores.append(found.score_N)
    if true_segments == 0:
        return np.full(len(tious), np.nan)
    order_N = np.argsort(-np.concatenate(scores), kind="stable")
    hit_NX = np.concatenate(hits)[order_N]
    return np.array([_average_precision(hit_N, true_segments) for hit_N in hit_NX.T])


def average_recall(
    detections: Sequence[Detections],
    truths: Sequence[Detections],
    *,
    proposals: int,
    tious: Sequence[float] = RECALL_TIOUS,
) -> float | None:
    """Return the fraction of true segments that the best detections of each video find, of any class.

    Args:
        proposals: number of detections per video.
        tious: thresholds, over which the fraction is averaged.

    Returns:
        None without a true segment.
    """
    right, total = np.zeros(len(tious)), 0
    for found, truth in zip(detections, truths, strict=True):
        found = found.take(np.argsort(-found.score_N, kind="stable")[:proposals])
        iou_NE = intersection_over_union(found.time_N2, truth.time_N2)
        right += np.array([_hits(iou_NE, threshold).sum() for threshold in tious])
        total += len(truth.score_N)
    return float(right.mean() / total) if total else None


def intersection_over_union(first_N2: np.ndarray, second_E2: np.ndarray) -> np.ndarray:
    """Return the temporal intersection over union of all pairs, (N, E); 0 for empty segments."""
    start_NE = np.maximum(first_N2[:, None, 0], second_E2[None, :, 0])
    end_NE = np.minimum(first_N2[:, None, 1], second_E2[None, :, 1])
    intersection_NE = (end_NE - start_NE).clip(min=0)
    length_N, length_E = first_N2[:, 1] - first_N2[:, 0], second_E2[:, 1] - second_E2[:, 0]
    union_NE = length_N[:, None] + length_E[None, :] - intersection_NE
    return np.divide(intersection_NE, union_NE, out=np.zeros_like(union_NE), where=union_NE > 0)


def _hits(iou_NE: np.ndarray, threshold: float) -> np.ndarray:
    """Return whether each detection of a video is right.

    Each takes the free segment with the largest overlap, the best detection first.
    """
    is_hit_N = np.zeros(len(iou_NE), dtype=bool)
    is_free_E = np.ones(iou_NE.shape[1], dtype=bool)
    for row, iou_E in enumerate(iou_NE):
        iou_E = np.where(is_free_E, iou_E, -1.0)
        if len(iou_E) and iou_E.max() >= threshold:
            is_hit_N[row] = True
            is_free_E[np.argmax(iou_E)] = False
    return is_hit_N


def _average_precision(hit_N: np.ndarray, true_segments: int) -> float:
    """Area under the precision, made decreasing, over the recall."""
    right_N = np.cumsum(hit_N)
    precision_N = right_N / np.arange(1, len(hit_N) + 1)
    highest_N = np.maximum.accumulate(precision_N[::-1])[::-1]
    return float((highest_N * hit_N).sum() / true_segments)
