"""Scores of an evaluation: accuracy, its confidence interval and the confusion matrix."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.stats import binomtest
from torch import Tensor

from kinemae.data_tools.command import DataError, log

CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True)
class VideoPrediction:
    """Class probabilities of one video, averaged over its views.

    Attributes:
        position: of the video in the index.
        key: the sample's key.
        label: the true class.
        probability_Y: None for a video that could not be read.
        error: why the video could not be read.
        tokens: number of tokens per view that the encoder processed, averaged over the views.
    """

    position: int
    key: str
    label: int
    probability_Y: np.ndarray | None
    error: str = ""
    tokens: float = 0.0


def average_views(logits_VY: Tensor) -> np.ndarray:
    """Average the softmax probabilities of a video's views."""
    return torch.softmax(logits_VY.double(), dim=1).mean(dim=0).cpu().numpy()


def score(
    predictions: Sequence[VideoPrediction], classes: Sequence[str], *, validation: str
) -> dict[str, Any]:
    """Compute the metrics of an evaluation as a JSON-compatible dictionary.

    Args:
        predictions: in any order; a video that occurs twice (from two processes) counts once.
        classes: class names in the order of the probabilities.
        validation: the data's folder, for messages.

    Raises:
        DataError: no video could be read.
    """
    once = {prediction.position: prediction for prediction in predictions}
    ordered = [once[position] for position in sorted(once)]
    failed = [prediction for prediction in ordered if prediction.probability_Y is None]
    read = [(each.label, each.probability_Y) for each in ordered if each.probability_Y is not None]
    if not read:
        error = failed[0].error if failed else "the data set is empty"
        raise DataError(
            f"data.validation={validation}: expected readable videos, got none; first error: {error}"
        )
    label_R = np.array([label for label, _ in read])
    probability_RY = np.stack([probability_Y for _, probability_Y in read])
    guess_R = probability_RY.argmax(axis=1)
    confusion_YY = np.zeros(
        (len(classes), len(classes)), dtype=int
    )  # row: true class, column: predicted class
    np.add.at(confusion_YY, (label_R, guess_R), 1)
    correct = int(confusion_YY.trace())
    top5_RK = (-probability_RY).argsort(axis=1, kind="stable")[:, :5]  # of equal ones the first, as argmax
    is_in_top5_R = (top5_RK == label_R[:, None]).any(axis=1)
    return {
        "top1": correct / len(read),
        "top1_ci95": wilson_interval(correct, len(read)),
        "top5": float(is_in_top5_R.mean()),
        "videos": len(read),
        "skipped": [{"key": prediction.key, "error": prediction.error} for prediction in failed],
        "classes": list(classes),
        "per_class_accuracy": _per_class_accuracy(confusion_YY, classes, validation),
        "confusion_matrix": confusion_YY.tolist(),
    }


def wilson_interval(correct: int, total: int) -> list[float]:
    """Return the 95 % Wilson confidence interval of a fraction as [low, high]."""
    interval = binomtest(correct, total).proportion_ci(CONFIDENCE, method="wilson")
    return [float(interval.low), float(interval.high)]


def _per_class_accuracy(
    confusion_YY: np.ndarray, classes: Sequence[str], validation: str
) -> dict[str, float | None]:
    """Map each class to its accuracy, or to None if the class has no videos."""
    videos_Y = confusion_YY.sum(axis=1)
    absent = [name for name, videos in zip(classes, videos_Y, strict=True) if videos == 0]
    if absent:
        named = ", ".join(absent[:5]) + (", ..." if len(absent) > 5 else "")
        log.warning("%s: %d of %d classes have no video: %s", validation, len(absent), len(classes), named)
    counts = zip(classes, confusion_YY.diagonal(), videos_Y, strict=True)
    return {name: float(correct / videos) if videos else None for name, correct, videos in counts}
