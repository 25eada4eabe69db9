"""Scores of a classification: accuracy, its confidence interval and the confusion matrix."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import binomtest

from kinemae.data_tools.command import log

CONFIDENCE = 0.95


def score_classes(probability_RY: np.ndarray, label_R: np.ndarray, classes: Sequence[str]) -> dict[str, Any]:
    """Compute the metrics of a classification as a JSON-compatible dictionary.

    Args:
        probability_RY: of R samples.
        label_R: their classes.
        classes: class names in the order of the probabilities.
    """
    guess_R = probability_RY.argmax(axis=1)
    confusion_YY = np.zeros((len(classes), len(classes)), dtype=int)  # row: true class
    np.add.at(confusion_YY, (label_R, guess_R), 1)
    correct = int(confusion_YY.trace())
    top5_RK = (-probability_RY).argsort(axis=1, kind="stable")[:, :5]  # of equal ones the first, as argmax
    is_in_top5_R = (top5_RK == label_R[:, None]).any(axis=1)
    return {
        "top1": correct / len(label_R),
        "top1_ci95": wilson_interval(correct, len(label_R)),
        "top5": float(is_in_top5_R.mean()),
        "classes": list(classes),
        "per_class_accuracy": _per_class_accuracy(confusion_YY, classes),
        "confusion_matrix": confusion_YY.tolist(),
    }


def wilson_interval(correct: int, total: int) -> list[float]:
    """Return the 95 % Wilson confidence interval of a fraction as [low, high]."""
    interval = binomtest(correct, total).proportion_ci(CONFIDENCE, method="wilson")
    return [float(interval.low), float(interval.high)]


def _per_class_accuracy(confusion_YY: np.ndarray, classes: Sequence[str]) -> dict[str, float | None]:
    """Map each class to its accuracy, or to None if the class has no videos."""
    videos_Y = confusion_YY.sum(axis=1)
    absent = [name for name, videos in zip(classes, videos_Y, strict=True) if videos == 0]
    if absent:
        named = ", ".join(absent[:5]) + (", ..." if len(absent) > 5 else "")
        log.warning("%d of %d classes have no validation video: %s", len(absent), len(classes), named)
    counts = zip(classes, confusion_YY.diagonal(), videos_Y, strict=True)
    return {name: float(correct / videos) if videos else None for name, correct, videos in counts}
