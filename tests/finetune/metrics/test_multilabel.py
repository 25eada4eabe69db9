"""Multi-label metrics equal scikit-learn's, with unknown cells, absent classes and ties."""

import json
import warnings

import numpy as np
import pytest
import sklearn.metrics as reference
from hypothesis import given
from hypothesis import strategies as st

from kinemae.finetune.metrics.multilabel import average_precisions, multilabel_metrics
from tests.finetune.metrics.inputs import SEEDS, names


@st.composite
def labelled(draw):
    random = np.random.default_rng(draw(SEEDS))
    shape = draw(st.integers(1, 30)), draw(st.integers(1, 5))
    levels = draw(st.sampled_from([3, 1000]))  # few levels: many ties
    probability_RY = random.integers(0, levels + 1, size=shape) / levels
    target_RY = (random.random(shape) < draw(st.sampled_from([0.05, 0.5, 0.9]))).astype(float)
    target_RY[random.random(shape) < draw(st.sampled_from([0, 0.3]))] = draw(st.sampled_from([np.nan, -1]))
    return probability_RY, target_RY


@given(labelled())
def test_average_precision_and_f1_equal_those_of_scikit_learn(inputs):
    probability_RY, target_RY = inputs
    result = multilabel_metrics(probability_RY, target_RY, names(probability_RY))
    is_known_RY = target_RY >= 0  # NaN is not
    expected_ap = {}
    for i, name in enumerate(names(probability_RY)):
        known_R = is_known_RY[:, i]
        true_R, score_R = target_RY[known_R, i], probability_RY[known_R, i]
        if true_R.sum():
            expected_ap[name] = reference.average_precision_score(true_R, score_R)
            assert result["per_class_ap"][name] == pytest.approx(expected_ap[name], abs=1e-6)
        else:
            assert result["per_class_ap"][name] is None
        occurs = true_R.any() or (score_R >= 0.5).any()
        f1 = reference.f1_score(true_R, score_R >= 0.5) if occurs else None
        assert result["per_class_f1"][name] == (pytest.approx(f1) if occurs else None)
    if expected_ap:
        assert result["map"] == pytest.approx(np.mean([*expected_ap.values()]), abs=1e-6)
    else:
        assert result["map"] is None
    cells = target_RY[is_known_RY], probability_RY[is_known_RY] >= 0.5
    if cells[0].any() or cells[1].any():
        assert result["f1_micro"] == pytest.approx(reference.f1_score(*cells))
    assert json.loads(json.dumps(result, allow_nan=False)) == result


@given(SEEDS, st.integers(1, 30), st.integers(2, 5))
def test_the_macro_averages_equal_those_of_scikit_learn_where_every_class_occurs(seed, samples, classes):
    random = np.random.default_rng(seed)
    target_RY = (random.random((samples, classes)) < 0.5).astype(int)
    target_RY[0] = 1
    probability_RY = random.random((samples, classes))
    result = multilabel_metrics(probability_RY, target_RY, names(target_RY))
    expected = reference.f1_score(target_RY, probability_RY >= 0.5, average="macro", zero_division=0)
    assert result["f1_macro"] == pytest.approx(expected)
    ap = reference.average_precision_score(target_RY, probability_RY, average="macro")
    assert result["map"] == pytest.approx(ap, abs=1e-6)


def test_scores_of_any_scale_have_the_same_average_precision():
    score_R1, target_R1 = np.array([[-4.0], [0.2], [9.0], [3.0]]), np.array([[0], [1], [1], [0]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        expected = reference.average_precision_score(target_R1[:, 0], score_R1[:, 0])
        assert average_precisions(score_R1, target_R1)[0] == pytest.approx(expected, abs=1e-6)
