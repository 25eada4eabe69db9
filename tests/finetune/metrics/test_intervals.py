"""Intervals: Wilson's formula; bootstraps that are deterministic, draw whole groups, and cover the truth."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kinemae.finetune.metrics import intervals
from kinemae.finetune.metrics.intervals import bootstrap, bootstrap_mean, group_numbers, wilson_interval
from tests.finetune.metrics.inputs import SEEDS


def test_the_interval_of_a_fraction_is_wilsons():
    correct, total, z = 40, 200, 1.959963984540054
    fraction = correct / total
    centre = (fraction + z * z / (2 * total)) / (1 + z * z / total)
    variance = fraction * (1 - fraction) / total + z * z / (4 * total * total)
    half = z / (1 + z * z / total) * np.sqrt(variance)

    assert wilson_interval(correct, total) == pytest.approx([centre - half, centre + half])
    assert wilson_interval(0, 5)[0] == 0
    assert wilson_interval(5, 5)[1] == 1


@given(SEEDS, st.integers(2, 60))
@settings(max_examples=20)
def test_the_interval_of_a_mean_is_that_of_any_metric_and_depends_on_the_seed_only(seed, samples):
    score_R = np.random.default_rng(seed).random(samples)
    low, high = bootstrap_mean(score_R, seed=1)
    assert score_R.min() <= low <= high <= score_R.max()
    assert bootstrap_mean(score_R, seed=1) == [low, high]
    general = bootstrap(lambda positions: float(score_R[positions].mean()), samples, seed=1)
    assert general == pytest.approx([low, high])


def test_the_interval_does_not_depend_on_the_size_of_blocks(monkeypatch):
    score_R = np.random.default_rng(0).random(50)
    expected = bootstrap_mean(score_R)
    monkeypatch.setattr(intervals, "_CELLS", 333)
    assert bootstrap_mean(score_R) == expected


def test_the_interval_of_a_mean_is_close_to_the_normal_one():
    score_R = np.random.default_rng(3).random(400)
    half = 1.96 * score_R.std() / np.sqrt(len(score_R))
    assert bootstrap_mean(score_R) == pytest.approx([score_R.mean() - half, score_R.mean() + half], abs=0.004)


def test_whole_groups_are_drawn():
    """Ten copies of twenty samples tell as much as the twenty samples."""
    score_R = np.random.default_rng(3).random(20)
    copies_R, groups = np.repeat(score_R, 10), np.repeat([f"g{i}" for i in range(20)], 10)
    assert bootstrap_mean(copies_R, groups) == pytest.approx(bootstrap_mean(score_R))
    narrow_low, narrow_high = bootstrap_mean(copies_R)
    low, high = bootstrap_mean(copies_R, groups)
    assert narrow_high - narrow_low < 0.5 * (high - low)


def test_missing_scores_do_not_count_and_one_group_has_no_interval():
    score_R = np.array([1.0, np.nan, 0.0, 1.0])
    assert bootstrap_mean(score_R) == bootstrap_mean(score_R[[0, 2, 3]])
    assert bootstrap_mean(score_R, ["a", "b", "a", "a"]) is None
    assert bootstrap_mean(np.array([1.0])) is None
    assert bootstrap(lambda positions: 1.0, 1) is None
    assert bootstrap(lambda positions: None, 5, resamples=3) is None


def test_samples_without_a_group_are_groups_of_their_own():
    numbers, count = group_numbers(["b", "", "a", None, "b", ""], 6)
    assert (numbers.tolist(), count) == ([0, 1, 2, 3, 0, 4], 5)


@pytest.mark.slow
def test_the_interval_covers_the_truth_as_often_as_it_says():
    random = np.random.default_rng(0)
    inside = 0
    for seed in range(200):
        low, high = bootstrap_mean((random.random(100) < 0.3).astype(float), seed=seed)
        inside += low <= 0.3 <= high
    assert 175 <= inside <= 199
