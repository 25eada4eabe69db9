"""Regression metrics equal their definitions, with missing targets, constants and single samples."""

import json

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from kinemae.finetune.metrics.regression import regression_metrics
from tests.finetune.metrics.inputs import SEEDS


@given(SEEDS, st.integers(3, 40), st.booleans())
def test_metrics_equal_their_definitions(seed, samples, with_ties):
    random = np.random.default_rng(seed)
    target_R = random.normal(size=samples) * 10
    prediction_R = target_R + random.normal(size=samples) * 4
    if with_ties:
        target_R, prediction_R = np.round(target_R / 8), np.round(prediction_R / 8)
        target_R[0], prediction_R[0] = target_R.max() + 1, prediction_R.max() + 1  # not constant
    result = regression_metrics(prediction_R, target_R)
    error_R = prediction_R - target_R
    total = ((target_R - target_R.mean()) ** 2).sum()
    assert result["mae"] == pytest.approx(np.abs(error_R).mean())
    assert result["rmse"] == pytest.approx(np.sqrt((error_R**2).mean()))
    assert result["r2"] == pytest.approx(1 - (error_R**2).sum() / total)
    assert result["pearson"] == pytest.approx(np.corrcoef(prediction_R, target_R)[0, 1])
    ranks = scipy.stats.rankdata(prediction_R), scipy.stats.rankdata(target_R)
    assert result["spearman"] == pytest.approx(np.corrcoef(*ranks)[0, 1])
    assert result["samples"] == samples


@given(SEEDS, st.integers(4, 30))
def test_several_values_are_averaged_and_missing_targets_do_not_count(seed, samples):
    random = np.random.default_rng(seed)
    prediction_RV, target_RV = random.normal(size=(2, samples, 3))
    target_RV[random.random(target_RV.shape) < 0.2] = np.nan
    target_RV[:, 2] = np.nan
    target_RV[0, :2] = 1
    result = regression_metrics(prediction_RV, target_RV, ["x", "y", "z"])
    singles = []
    for i, name in enumerate("xy"):
        known_R = ~np.isnan(target_RV[:, i])
        singles.append(regression_metrics(prediction_RV[known_R, i], target_RV[known_R, i]))
        assert result["per_value"][name] == singles[-1]
    assert result["per_value"]["z"]["samples"] == 0
    for key in ("mae", "rmse"):
        assert result[key] == pytest.approx(np.mean([single[key] for single in singles]))
    assert json.loads(json.dumps(result, allow_nan=False)) == result


@pytest.mark.parametrize(
    ("prediction", "target"), [([1.0], [3.0]), ([1.0, 2.0], [3.0, 3.0]), ([5.0, 5.0], [3.0, 3.0])]
)
def test_a_single_sample_and_equal_targets_have_errors_but_no_correlation(prediction, target):
    result = regression_metrics(np.array(prediction), np.array(target))
    assert result["mae"] == pytest.approx(np.abs(np.subtract(prediction, target)).mean())
    assert (result["r2"], result["spearman"], result["pearson"]) == (None, None, None)


def test_equal_predictions_have_an_r2_and_no_correlation():
    result = regression_metrics(np.array([2.0, 2.0]), np.array([1.0, 3.0]))
    assert (result["r2"], result["spearman"]) == (0.0, None)


def test_no_target_is_an_error():
    with pytest.raises(ValueError, match="at least one sample with a target"):
        regression_metrics(np.ones(2), np.full(2, np.nan))
