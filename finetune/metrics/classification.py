"""Metrics of single-label classification: accuracies, precision, recall, F1 and the confusion matrix."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from kinemae.finetune.metrics.arrays import Array, as_floats, as_integers, as_number, mean, ratio
from kinemae.finetune.metrics.calibration import calibration_metrics
from kinemae.finetune.metrics.intervals import wilson_interval


def classification_metrics(probability_RY: Array, label_R: Array, classes: Sequence[str]) -> dict[str, Any]:
    """Compute all metrics of a classification as JSON.

    Args:
        label_R: number of the true class of each sample; negative if it is missing. Such samples do not
            count.
        classes: name of each column.

    Returns:
        The keys in the table of docs/evaluation.md. A metric without a defined value is None.

    Raises:
        ValueError: no sample has a label.
    """
    probability_RY, label_R = as_floats(probability_RY), as_integers(label_R)
    is_known_R = label_R >= 0
    probability_RY, label_R = probability_RY[is_known_R], label_R[is_known_R]
    if not len(label_R):
        raise ValueError("expected at least one labelled sample, got none")
    confusion_YY = confusion_matrix(predicted_classes(probability_RY), label_R, classes=len(classes))
    correct = int(confusion_YY.trace())
    by_class = class_metrics(confusion_YY)
    named = {
        f"per_class_{name}": dict(zip(classes, map(as_number, values_Y), strict=True))
        for name, values_Y in by_class.items()
    }
    recall = mean(by_class["recall"])
    return {
        "top1": correct / len(label_R),
        "top1_ci95": wilson_interval(correct, len(label_R)),
        "top5": float(is_in_top(probability_RY, label_R, k=5).mean()),
        "mean_class_accuracy": recall,
        "balanced_accuracy": recall,
        "f1": mean(by_class["f1"]),
        **calibration_metrics(probability_RY, label_R),
        "samples": len(label_R),
        "classes": list(classes),
        "per_class_accuracy": named["per_class_recall"],
        **named,
        "confusion_matrix": confusion_YY.tolist(),
    }


def predicted_classes(probability_RY: Array) -> np.ndarray:
    """Return the most probable class of each sample; of equal ones the first."""
    return as_floats(probability_RY).argmax(axis=1)


def is_in_top(probability_RY: Array, label_R: Array, *, k: int) -> np.ndarray:
    """Return whether the true class is among the k most probable; of equal ones the first count."""
    top_RK = (-as_floats(probability_RY)).argsort(axis=1, kind="stable")[:, :k]
    return (top_RK == as_integers(label_R)[:, None]).any(axis=1)


def confusion_matrix(prediction_R: Array, label_R: Array, *, classes: int) -> np.ndarray:
    """Count samples by true class (row) and predicted class (column). Negative labels do not count."""
    prediction_R, label_R = as_integers(prediction_R), as_integers(label_R)
    is_known_R = label_R >= 0
    counts_YY = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(counts_YY, (label_R[is_known_R], prediction_R[is_known_R]), 1)
    return counts_YY


def class_metrics(confusion_YY: np.ndarray) -> dict[str, np.ndarray]:
    """Compute precision, recall and F1 per class from counts.

    Returns:
        "precision": NaN for a class that is never predicted. "recall": NaN for a class without samples. "f1":
        NaN for a class with neither. As in scikit-learn, the mean over the rest is the macro average.
    """
    hit_Y = confusion_YY.diagonal().astype(np.float64)
    true_Y, predicted_Y = confusion_YY.sum(axis=1), confusion_YY.sum(axis=0)
    return {
        "precision": ratio(hit_Y, predicted_Y),
        "recall": ratio(hit_Y, true_Y),
        "f1": ratio(2 * hit_Y, true_Y + predicted_Y),
    }
