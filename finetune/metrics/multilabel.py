"""Metrics of multi-label classification: average precision and F1."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from kinemae.finetune.metrics.arrays import Array, as_floats, as_number, mean, ratio


def multilabel_metrics(
    probability_RY: Array, target_RY: Array, classes: Sequence[str], *, threshold: float = 0.5
) -> dict[str, Any]:
    """Compute the metrics of samples with any number of classes, as JSON.

    Args:
        target_RY: 1 if the sample has the class, 0 if not, NaN or negative if unknown. Unknown cells do not
            count.
        threshold: probability from which a class counts as predicted.

    Returns:
        "map": mean average precision over the classes with a positive sample. "f1_micro", "f1_macro":
        of the predictions at the threshold; macro over classes that occur in truth or predictions.
        Per class: "per_class_ap", "per_class_f1", "positives" and "samples". None if undefined.
    """
    probability_RY, target_RY = as_floats(probability_RY), as_floats(target_RY)
    is_known_RY = ~(np.isnan(target_RY) | (target_RY < 0))
    is_true_RY = is_known_RY & (target_RY > 0)
    is_predicted_RY = is_known_RY & (probability_RY >= threshold)
    hit_Y = (is_true_RY & is_predicted_RY).sum(axis=0)
    total_Y = is_true_RY.sum(axis=0) + is_predicted_RY.sum(axis=0)
    ap_Y = average_precisions(probability_RY, target_RY)
    f1_Y = ratio(2.0 * hit_Y, total_Y)
    return {
        "map": mean(ap_Y),
        "f1_micro": as_number(ratio(np.array(2.0 * hit_Y.sum()), total_Y.sum())),
        "f1_macro": mean(f1_Y),
        "samples": int(is_known_RY.any(axis=1).sum()),
        "classes": list(classes),
        "per_class_ap": dict(zip(classes, map(as_number, ap_Y), strict=True)),
        "per_class_f1": dict(zip(classes, map(as_number, f1_Y), strict=True)),
        "per_class_positives": dict(zip(classes, is_true_RY.sum(axis=0).tolist(), strict=True)),
        "per_class_samples": dict(zip(classes, is_known_RY.sum(axis=0).tolist(), strict=True)),
    }


def average_precisions(probability_RY: Array, target_RY: Array) -> np.ndarray:
    """Return the average precision of each class; NaN for a class without a positive sample.

    Samples with equal probability enter together, as in scikit-learn. Unknown cells, NaN or negative, do not
    count.
    """
    from torchmetrics.functional.classification import binary_average_precision

    probability_RY, target_RY = as_floats(probability_RY), as_floats(target_RY)
    is_known_RY = ~(np.isnan(target_RY) | (target_RY < 0))
    ap_Y = np.full(target_RY.shape[1], np.nan)
    for i, is_known_R in enumerate(is_known_RY.T):
        target_R = target_RY[is_known_R, i] > 0
        if target_R.any():
            # Ranks keep the order and cannot be mistaken for logits.
            _, rank_R = np.unique(probability_RY[is_known_R, i], return_inverse=True)
            score_R = torch.from_numpy(rank_R / len(rank_R))
            ap_Y[i] = binary_average_precision(score_R, torch.from_numpy(target_R.astype(np.int64)))
    return ap_Y
