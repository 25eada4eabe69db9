"""Calibration of class probabilities: calibration error, reliability bins, log likelihood, Brier score."""

from typing import Any

import numpy as np

from kinemae.finetune.metrics.arrays import Array, as_floats, as_integers, as_number, ratio

BINS = 15


def calibration_metrics(probability_RY: Array, label_R: Array, *, bins: int = BINS) -> dict[str, Any]:
    """Compute the calibration of the most probable class, and scores of all probabilities.

    Args:
        probability_RY: rows that sum to 1.
        label_R: number of the true class; no sample lacks one.
        bins: number of intervals of equal width between 0 and 1.

    Returns:
        "ece": expected calibration error, the mean over samples of |confidence - accuracy| of their bin.
        "nll": negative log likelihood of the true class; a probability of 0 counts as the smallest positive
        number. "brier": mean over samples of the summed squared errors of the probabilities. "reliability":
        the bins with samples.
    """
    probability_RY, label_R = as_floats(probability_RY), as_integers(label_R)
    reliability = reliability_bins(probability_RY, label_R, bins=bins)
    gaps = [each["samples"] * abs(each["confidence"] - each["accuracy"]) for each in reliability]
    return {
        "ece": sum(gaps) / len(label_R),
        "nll": float(negative_log_likelihood(probability_RY, label_R).mean()),
        "brier": float(brier_scores(probability_RY, label_R).mean()),
        "reliability": reliability,
    }


def reliability_bins(probability_RY: Array, label_R: Array, *, bins: int = BINS) -> list[dict[str, Any]]:
    """Compare confidence and accuracy in bins of the highest probability, from low to high.

    A bin includes its lower edge; the last one includes 1.

    Returns:
        "low", "high", "samples", and the mean "confidence" and "accuracy" of each bin with samples.
    """
    probability_RY = as_floats(probability_RY)
    confidence_R = probability_RY.max(axis=1)
    is_correct_R = probability_RY.argmax(axis=1) == as_integers(label_R)
    edges = np.linspace(0, 1, bins + 1)
    bin_R = np.clip(np.searchsorted(edges, confidence_R, side="right") - 1, 0, bins - 1)
    samples = np.bincount(bin_R, minlength=bins)
    confidence = ratio(np.bincount(bin_R, weights=confidence_R, minlength=bins), samples)
    accuracy = ratio(np.bincount(bin_R, weights=is_correct_R, minlength=bins), samples)
    return [
        {
            "low": float(edges[i]),
            "high": float(edges[i + 1]),
            "samples": int(samples[i]),
            "confidence": as_number(confidence[i]),
            "accuracy": as_number(accuracy[i]),
        }
        for i in np.flatnonzero(samples)
    ]


def negative_log_likelihood(probability_RY: Array, label_R: Array) -> np.ndarray:
    """Return the negative log likelihood of each sample's true class."""
    true_R = np.take_along_axis(as_floats(probability_RY), as_integers(label_R)[:, None], axis=1)[:, 0]
    return -np.log(np.maximum(true_R, np.finfo(np.float64).tiny))


def brier_scores(probability_RY: Array, label_R: Array) -> np.ndarray:
    """Return each sample's squared distance between its probabilities and the true class."""
    error_RY = as_floats(probability_RY).copy()
    error_RY[np.arange(len(error_RY)), as_integers(label_R)] -= 1
    return (error_RY**2).sum(axis=1)
