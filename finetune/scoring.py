"""From the views' scores to a result: pure arithmetic on what the processes gathered."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.stats import binomtest
from sklearn.metrics import accuracy_score, confusion_matrix, top_k_accuracy_score
from torch import Tensor

from kinemae.data_tools.command import DataError, log

CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True)
class Vote:
    """What one video's views said together.

    Attributes:
        position: of the video in the index; each video counts once.
        key: the sample's key.
        label: the true class.
        probability_Y: mean over the views, None for a video that could not be read.
        reason: why it could not be read.
        tokens: how many the encoder saw of a view, on the mean over the views.
    """

    position: int
    key: str
    label: int
    probability_Y: np.ndarray | None
    reason: str = ""
    tokens: float = 0.0


def average_views(logits_VY: Tensor) -> np.ndarray:
    """Softmax each view's scores, then average: a view that is sure counts more than one that is not."""
    return torch.softmax(logits_VY.double(), dim=1).mean(dim=0).cpu().numpy()


def score(votes: Sequence[Vote], classes: Sequence[str], *, validation: str) -> dict[str, Any]:
    """The result of an evaluation, ready for json.

    Args:
        votes: in any order; a video that came twice (from two processes) counts once.
        classes: names in the order of the scores.
        validation: the data's folder, for messages.

    Raises:
        DataError: not one video could be read.
    """
    once = {vote.position: vote for vote in votes}
    ordered = [once[position] for position in sorted(once)]
    read = [vote for vote in ordered if vote.probability_Y is not None]
    if not read:
        reason = ordered[0].reason if ordered else "it is empty"
        raise DataError(f"no video of {validation} could be read, so there is no score; the first: {reason}")
    label_R = np.array([vote.label for vote in read])
    probability_RY = np.stack([vote.probability_Y for vote in read if vote.probability_Y is not None])
    guess_R = probability_RY.argmax(axis=1)
    every_class = np.arange(len(classes))
    top1 = float(accuracy_score(label_R, guess_R))
    # Row: the true class; column: the class that was guessed.
    confusion_YY = _confusion(label_R, guess_R, every_class)
    return {
        "top1": top1,
        "top1_interval": wilson_interval(round(top1 * len(read)), len(read)),
        "top5": _top5(label_R, probability_RY, every_class),
        "videos": len(read),
        "skipped": [
            {"key": vote.key, "reason": vote.reason} for vote in ordered if vote.probability_Y is None
        ],
        "classes": list(classes),
        "per_class": _per_class(confusion_YY, classes, validation),
        "confusion": confusion_YY.tolist(),
    }


def wilson_interval(right: int, total: int) -> list[float]:
    """The 95 % Wilson interval of a share, as [low, high]: how far chance alone may move the score."""
    interval = binomtest(right, total).proportion_ci(CONFIDENCE, method="wilson")
    return [float(interval.low), float(interval.high)]


def _top5(label_R: np.ndarray, probability_RY: np.ndarray, every_class: np.ndarray) -> float:
    if len(every_class) <= 5:
        return 1.0  # the right class is always among the first min(5, classes)
    return float(top_k_accuracy_score(label_R, probability_RY, k=5, labels=every_class))


def _confusion(label_R: np.ndarray, guess_R: np.ndarray, every_class: np.ndarray) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a single label, though all labels are given
        return confusion_matrix(label_R, guess_R, labels=every_class)


def _per_class(confusion_YY: np.ndarray, classes: Sequence[str], validation: str) -> dict[str, float | None]:
    """The share of each class's videos that was found, None for a class without videos."""
    videos_Y = confusion_YY.sum(axis=1)
    absent = [name for name, videos in zip(classes, videos_Y, strict=True) if videos == 0]
    if absent:
        named = ", ".join(absent[:5]) + (", ..." if len(absent) > 5 else "")
        log.warning("%d of %d classes have no video in %s: %s", len(absent), len(classes), validation, named)
    found_Y = confusion_YY.diagonal()
    return {
        name: float(found / videos) if videos else None
        for name, found, videos in zip(classes, found_Y, videos_Y, strict=True)
    }
