"""Paired tests: exact McNemar, and a bootstrap that respects groups and finds no difference where none is."""

from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kinemae.finetune.metrics.paired import mcnemar, paired_bootstrap
from tests.finetune.metrics.inputs import SEEDS


@given(SEEDS, st.integers(1, 40))
def test_mcnemar_is_the_binomial_test_of_the_differing_samples(seed, samples):
    first_R, second_R = np.random.default_rng(seed).random((2, samples)) < 0.6
    result = mcnemar(first_R, second_R)
    only_first, only_second = result["only_first"], result["only_second"]
    assert only_first - only_second == first_R.sum() - second_R.sum()
    differing = only_first + only_second
    tail = sum(comb(differing, k) for k in range(min(only_first, only_second) + 1)) / 2**differing
    assert result["p_value"] == pytest.approx(min(1.0, 2 * tail))
    swapped = mcnemar(second_R, first_R)
    assert swapped["p_value"] == pytest.approx(result["p_value"])


def test_a_shift_of_all_samples_is_certain_and_equal_runs_do_not_differ():
    score_R = np.random.default_rng(0).random(30)
    better = paired_bootstrap(score_R, score_R + 0.1 + 0.01 * score_R)
    assert better["difference"] == pytest.approx((0.1 + 0.01 * score_R).mean())
    assert 0 < better["ci95"][0] < better["ci95"][1]
    assert better["p_value"] < 0.001
    equal = paired_bootstrap(score_R, score_R)
    assert (equal["difference"], equal["ci95"], equal["p_value"]) == (0, [0, 0], 1)


@given(SEEDS)
def test_swapping_the_runs_negates_the_difference(seed):
    first_R, second_R = np.random.default_rng(seed).random((2, 12))
    forth, back = paired_bootstrap(first_R, second_R), paired_bootstrap(second_R, first_R)
    assert back["difference"] == pytest.approx(-forth["difference"])
    assert back["ci95"] == pytest.approx([-forth["ci95"][1], -forth["ci95"][0]])
    assert back["p_value"] == forth["p_value"]


def test_copies_of_a_sample_in_one_group_add_no_certainty():
    random = np.random.default_rng(1)
    first_R, second_R = random.random(10), random.random(10) + 0.15
    groups = np.repeat([f"g{i}" for i in range(10)], 20)
    alone = paired_bootstrap(first_R, second_R)
    copied = paired_bootstrap(np.repeat(first_R, 20), np.repeat(second_R, 20), groups)
    assert copied["p_value"] == pytest.approx(alone["p_value"])
    assert copied["ci95"] == pytest.approx(alone["ci95"])
    naive = paired_bootstrap(np.repeat(first_R, 20), np.repeat(second_R, 20))
    assert naive["p_value"] < copied["p_value"]


def test_samples_that_one_run_could_not_score_do_not_count():
    result = paired_bootstrap(np.array([1.0, np.nan, 0.0]), np.array([1.0, 1.0, 1.0]))
    assert (result["difference"], result["samples"]) == (0.5, 2)
    one_group = paired_bootstrap(np.zeros(2), np.ones(2), ["a", "a"])
    assert (one_group["difference"], one_group["ci95"], one_group["p_value"]) == (1, None, None)


def test_other_samples_are_an_error():
    with pytest.raises(ValueError, match="the same samples, got 2 and 3"):
        paired_bootstrap(np.ones(2), np.ones(3))
    with pytest.raises(ValueError, match="samples with both scores"):
        paired_bootstrap(np.array([np.nan]), np.ones(1))


@pytest.mark.slow
def test_equally_good_runs_differ_significantly_about_as_often_as_the_level_says():
    random = np.random.default_rng(0)
    below = 0
    for seed in range(200):
        first_R, second_R = (random.random((2, 80)) < 0.5).astype(float)
        below += paired_bootstrap(first_R, second_R, seed=seed)["p_value"] < 0.05
    assert below <= 22
