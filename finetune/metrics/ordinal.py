"""Metrics of ordered classes: distance in classes and quadratic weighted kappa."""

from typing import Any

import numpy as np
import torch

from kinemae.finetune.metrics.arrays import Array, as_integers, as_number


def ordinal_metrics(prediction_R: Array, label_R: Array, *, classes: int) -> dict[str, Any]:
    """Compute the metrics of predicted classes that have an order, as JSON.

    Args:
        prediction_R: number of the predicted class.
        label_R: number of the true class; negative if it is missing. Such samples do not count.

    Returns:
        "mae_classes": mean distance between predicted and true class. "within_one": fraction of the samples
        with a distance of at most 1. "quadratic_weighted_kappa": None if one class is the only one in truth
        and predictions. "samples".

    Raises:
        ValueError: no sample has a label.
    """
    from torchmetrics.functional.classification import multiclass_cohen_kappa

    prediction_R, label_R = as_integers(prediction_R), as_integers(label_R)
    prediction_R, label_R = prediction_R[label_R >= 0], label_R[label_R >= 0]
    if not len(label_R):
        raise ValueError("expected at least one labelled sample, got none")
    distance_R = np.abs(prediction_R - label_R)
    present = np.union1d(prediction_R, label_R)
    kappa = float("nan")
    if len(present) > 1:
        kappa = float(
            multiclass_cohen_kappa(
                torch.from_numpy(prediction_R),
                torch.from_numpy(label_R),
                num_classes=max(classes, 2),
                weights="quadratic",
            )
        )
    return {
        "mae_classes": float(distance_R.mean()),
        "within_one": float((distance_R <= 1).mean()),
        "quadratic_weighted_kappa": as_number(kappa),
        "samples": len(label_R),
    }
