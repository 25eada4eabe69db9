"""Confidence intervals: Wilson for fractions, bootstrap by sample or by group for any metric."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from kinemae.data_tools.randomness import derived_seed
from kinemae.finetune.metrics.arrays import Array, as_floats

CONFIDENCE = 0.95
RESAMPLES = 2000
_CELLS = 1 << 22  # of a block of resampled values


def wilson_interval(correct: int, total: int) -> list[float]:
    """Return the 95 % Wilson confidence interval of a fraction as [low, high]."""
    from scipy.stats import binomtest

    interval = binomtest(correct, total).proportion_ci(CONFIDENCE, method="wilson")
    return [float(interval.low), float(interval.high)]


def bootstrap_mean(
    score_R: Array, groups: Sequence[Any] | np.ndarray | None = None, *, seed: int = 0
) -> list[float] | None:
    """Return the 95 % bootstrap interval of a mean as [low, high].

    Args:
        score_R: one value per sample; NaN if it is missing.
        groups: of each sample. Whole groups are drawn, since samples of a group are alike. "" and None are
            groups of one sample. None: every sample is drawn by itself.

    Returns:
        None with fewer than two groups, from which no spread can be estimated.
    """
    means = resampled_means(as_floats(score_R), groups, seed=seed)
    return None if means is None else percentile_interval(means)


def bootstrap(
    metric: Callable[[np.ndarray], float | None],
    samples: int,
    groups: Sequence[Any] | np.ndarray | None = None,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> list[float] | None:
    """Return the 95 % bootstrap interval of any metric as [low, high].

    Args:
        metric: computes the metric from positions of samples, which may repeat; None if it is undefined.
        groups: as in `bootstrap_mean`.

    Returns:
        None with fewer than two groups, or if no resample has a defined metric.
    """
    number_R, count = group_numbers(groups, samples)
    if count < 2:
        return None
    order_R = np.argsort(number_R, kind="stable")
    members = np.split(order_R, np.cumsum(np.bincount(number_R, minlength=count))[:-1])
    draws = _generator(seed)
    values = []
    for _ in range(resamples):
        chosen = draws.integers(count, size=count)
        values.append(metric(np.concatenate([members[number] for number in chosen])))
    defined = np.array([value for value in values if value is not None and np.isfinite(value)])
    return percentile_interval(defined) if len(defined) else None


def resampled_means(
    score_R: np.ndarray, groups: Sequence[Any] | np.ndarray | None, *, seed: int
) -> np.ndarray | None:
    """Means of bootstrap resamples; None with fewer than two groups. See `bootstrap_mean`."""
    is_known_R = ~np.isnan(score_R)
    kept = None if groups is None else [each for each, known in zip(groups, is_known_R, strict=True) if known]
    score_R = score_R[is_known_R]
    number_R, count = group_numbers(kept, len(score_R))
    if count < 2:
        return None
    sum_G = np.bincount(number_R, weights=score_R, minlength=count)
    size_G = np.bincount(number_R, minlength=count)
    draws = _generator(seed)
    means = []
    block = max(1, _CELLS // count)
    for begin in range(0, RESAMPLES, block):
        chosen_XG = draws.integers(count, size=(min(block, RESAMPLES - begin), count))
        means.append(sum_G[chosen_XG].sum(axis=1) / size_G[chosen_XG].sum(axis=1))
    return np.concatenate(means)


def percentile_interval(values: np.ndarray) -> list[float]:
    """Return the central 95 % of values as [low, high]."""
    low, high = np.quantile(values, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return [float(low), float(high)]


def group_numbers(groups: Sequence[Any] | np.ndarray | None, samples: int) -> tuple[np.ndarray, int]:
    """Number the groups from 0 in the order of their first sample. "" and None are groups of one sample.

    Returns:
        The number of each sample's group, and the number of groups.
    """
    if groups is None:
        return np.arange(samples), samples
    numbers: dict[Any, int] = {}
    for i, group in enumerate(groups):
        key = ("sample", i) if group is None or group == "" else ("group", group)
        numbers.setdefault(key, len(numbers))
    keys = (("sample", i) if each is None or each == "" else ("group", each) for i, each in enumerate(groups))
    return np.array([numbers[key] for key in keys], dtype=np.int64), len(numbers)


def _generator(seed: int) -> np.random.Generator:
    return np.random.default_rng(derived_seed(seed, purpose="bootstrap"))
