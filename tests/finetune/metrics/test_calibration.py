"""Calibration error and reliability bins equal their definition and torchmetrics."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kinemae.finetune.metrics.calibration import calibration_metrics, reliability_bins
from tests.finetune.metrics.inputs import SEEDS


@given(SEEDS, st.integers(2, 6), st.integers(1, 60), st.integers(1, 20))
def test_the_calibration_error_equals_torchmetrics(seed, classes, samples, bins):
    from torchmetrics.functional.classification import multiclass_calibration_error

    random = np.random.default_rng(seed)
    probability_RY, label_R = (
        random.dirichlet(np.ones(classes), samples),
        random.integers(classes, size=samples),
    )
    expected = multiclass_calibration_error(
        torch.from_numpy(probability_RY), torch.from_numpy(label_R), num_classes=classes, n_bins=bins
    )
    result = calibration_metrics(probability_RY, label_R, bins=bins)
    assert result["ece"] == pytest.approx(float(expected), abs=1e-6)
    assert sum(each["samples"] for each in result["reliability"]) == samples


def test_bins_hold_confidence_and_accuracy():
    probability_RY = np.array([[0.9, 0.1], [0.94, 0.06], [0.55, 0.45], [0.0, 1.0]])
    bins = reliability_bins(probability_RY, np.array([0, 1, 0, 1]), bins=10)
    assert [(each["low"], each["high"], each["samples"]) for each in bins] == [
        (0.5, pytest.approx(0.6), 1),
        (0.9, 1.0, 3),
    ]
    assert bins[1]["confidence"] == pytest.approx((0.9 + 0.94 + 1) / 3)
    assert bins[1]["accuracy"] == pytest.approx(2 / 3)


def test_a_confident_and_right_model_is_calibrated_and_a_wrong_one_is_not():
    certain_RY = np.eye(3)
    assert calibration_metrics(certain_RY, np.arange(3))["ece"] == 0
    wrong = calibration_metrics(certain_RY, np.array([1, 2, 0]))
    assert wrong["ece"] == 1
    assert wrong["brier"] == 2
    assert 700 < wrong["nll"] < 710  # of the smallest positive number, not infinite
