"""Paired tests between two runs that scored the same samples."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from kinemae.finetune.metrics.arrays import Array, as_floats
from kinemae.finetune.metrics.intervals import percentile_interval, resampled_means


def mcnemar(first_R: Array, second_R: Array) -> dict[str, Any]:
    """Exact McNemar test of two accuracies. Samples must be independent: there are no groups.

    Args:
        first_R, second_R: 1 or true where the run is right.

    Returns:
        "only_first", "only_second": samples that only this run has right. "p_value": two-sided probability of
        at least this imbalance if both runs were equally good; 1 if they never differ.
    """
    from scipy.stats import binomtest

    is_first_R, is_second_R = as_floats(first_R) > 0, as_floats(second_R) > 0
    only_first = int((is_first_R & ~is_second_R).sum())
    only_second = int((is_second_R & ~is_first_R).sum())
    differing = only_first + only_second
    p_value = float(binomtest(only_first, differing, 0.5).pvalue) if differing else 1.0
    return {"only_first": only_first, "only_second": only_second, "p_value": p_value}


def paired_bootstrap(
    first_R: Array,
    second_R: Array,
    groups: Sequence[Any] | np.ndarray | None = None,
    *,
    seed: int = 0,
) -> dict[str, Any]:
    """Bootstrap the mean difference between the scores of two runs, second minus first.

    Args:
        first_R, second_R: score of each sample, in the same order. A sample with NaN in one does not count.
        groups: samples of a group are drawn together, see `bootstrap_mean`.

    Returns:
        "difference"; "ci95": its interval [low, high]; "p_value": two-sided, the fraction of resampled
        differences at least as far from the observed one as 0 is, from (k + 1) / (n + 1) of n resamples.
        "samples" that count. Interval and p-value are None with fewer than two groups.

    Raises:
        ValueError: no sample has both scores, or the numbers of samples differ.
    """
    first_R, second_R = as_floats(first_R), as_floats(second_R)
    if first_R.shape != second_R.shape:
        raise ValueError(f"expected scores of the same samples, got {len(first_R)} and {len(second_R)}")
    delta_R = second_R - first_R
    known_R = delta_R[~np.isnan(delta_R)]
    if not len(known_R):
        raise ValueError("expected samples with both scores, got none")
    difference = float(known_R.mean())
    means = resampled_means(delta_R, groups, seed=seed)
    p_value = None
    if means is not None:
        # Rounding of sums must not separate equal distances.
        is_as_far = np.abs(means - difference) >= abs(difference) * (1 - 1e-9)
        p_value = float((is_as_far.sum() + 1) / (len(means) + 1))
    return {
        "difference": difference,
        "ci95": None if means is None else percentile_interval(means),
        "p_value": p_value,
        "samples": len(known_R),
    }
