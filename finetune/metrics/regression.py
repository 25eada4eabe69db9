"""Metrics of regression: errors, R2 and correlations, over all values and per value."""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from kinemae.finetune.metrics.arrays import Array, as_floats, as_number, mean


def regression_metrics(
    prediction_RV: Array, target_RV: Array, names: Sequence[str] | None = None
) -> dict[str, Any]:
    """Compute the metrics of one or several numbers per sample, as JSON.

    Args:
        prediction_RV, target_RV: of shape (samples, values), or (samples,) for one value. A target of NaN is
            missing and does not count.
        names: of the values, for "per_value".

    Returns:
        "mae", "rmse", "r2", "spearman" and "pearson", each the mean over the values; "samples" with any
        target; with `names`, "per_value" with the same keys. None if undefined: R2 and correlations of a
        single sample or of equal numbers.

    Raises:
        ValueError: no sample has a target.
    """
    prediction_RV = _as_columns(as_floats(prediction_RV))
    target_RV = _as_columns(as_floats(target_RV))
    is_known_RV = ~np.isnan(target_RV)
    if not is_known_RV.any():
        raise ValueError("expected at least one sample with a target, got none")
    columns = [
        _of_value(prediction_RV[is_known_R, i], target_RV[is_known_R, i])
        for i, is_known_R in enumerate(is_known_RV.T)
    ]
    keys = ("mae", "rmse", "r2", "spearman", "pearson")
    means = {key: mean(np.array([each[key] for each in columns], dtype=np.float64)) for key in keys}
    result = {**means, "samples": int(is_known_RV.any(axis=1).sum())}
    return result if names is None else {**result, "per_value": dict(zip(names, columns, strict=True))}


def _as_columns(values: np.ndarray) -> np.ndarray:
    return values[:, None] if values.ndim == 1 else values


def _of_value(prediction_R: np.ndarray, target_R: np.ndarray) -> dict[str, Any]:
    from scipy.stats import ConstantInputWarning, NearConstantInputWarning, pearsonr, spearmanr
    from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error

    if not len(target_R):
        return dict.fromkeys(("mae", "rmse", "r2", "spearman", "pearson")) | {"samples": 0}
    varies = len(target_R) > 1 and np.ptp(target_R) > 0
    correlates = varies and np.ptp(prediction_R) > 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", (ConstantInputWarning, NearConstantInputWarning))
        spearman = spearmanr(prediction_R, target_R).statistic if correlates else np.nan
        pearson = pearsonr(prediction_R, target_R).statistic if correlates else np.nan
    return {
        "mae": float(mean_absolute_error(target_R, prediction_R)),
        "rmse": float(root_mean_squared_error(target_R, prediction_R)),
        "r2": as_number(r2_score(target_R, prediction_R)) if varies else None,
        "spearman": as_number(spearman),
        "pearson": as_number(pearson),
        "samples": len(target_R),
    }
