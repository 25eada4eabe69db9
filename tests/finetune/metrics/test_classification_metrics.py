"""Metrics of single-label classification equal scikit-learn's, for any classes, ties and missing labels."""

import json
import warnings

import numpy as np
import pytest
import sklearn.metrics as reference
import torch
from hypothesis import given
from hypothesis import strategies as st

from kinemae.finetune.metrics.classification import (
    class_metrics,
    classification_metrics,
    confusion_matrix,
    is_in_top,
)
from tests.finetune.metrics.inputs import names, probabilities

CLOSE = {"rtol": 1e-9, "atol": 1e-12}


@st.composite
def labelled(draw, *, may_miss=False):
    classes, samples = draw(st.integers(1, 7)), draw(st.integers(1, 40))
    probability_RY = probabilities(draw, samples, classes)
    present = draw(st.lists(st.integers(0, classes - 1), min_size=1, unique=True))
    allowed = st.sampled_from([*present, -1] if may_miss else present)
    label_R = np.array(draw(st.lists(allowed, min_size=samples, max_size=samples)))
    if may_miss:
        label_R[0] = present[0]
    return probability_RY, label_R


@given(labelled())
def test_metrics_equal_those_of_scikit_learn(inputs):
    probability_RY, label_R = inputs
    guess_R, everything = probability_RY.argmax(axis=1), range(probability_RY.shape[1])

    result = classification_metrics(probability_RY, label_R, names(probability_RY))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # classes that are only predicted
        balanced = reference.balanced_accuracy_score(label_R, guess_R)
        f1 = reference.f1_score(label_R, guess_R, average="macro")
    assert result["top1"] == pytest.approx(reference.accuracy_score(label_R, guess_R))
    assert result["balanced_accuracy"] == pytest.approx(balanced)
    assert result["mean_class_accuracy"] == pytest.approx(balanced)
    assert result["f1"] == pytest.approx(f1)
    expected_YY = reference.confusion_matrix(label_R, guess_R, labels=everything)
    assert result["confusion_matrix"] == expected_YY.tolist()
    per_class = reference.precision_recall_fscore_support(
        label_R, guess_R, labels=everything, zero_division=np.nan
    )
    for name, expected_Y in zip(("precision", "recall", "f1"), per_class[:3], strict=True):
        ours_Y = np.array([*result[f"per_class_{name}"].values()], dtype=float)
        np.testing.assert_allclose(ours_Y, expected_Y, **CLOSE)
    assert result["per_class_accuracy"] == result["per_class_recall"]


@given(labelled())
def test_log_likelihood_and_brier_score_equal_those_of_scikit_learn(inputs):
    probability_RY, label_R = inputs
    result = classification_metrics(probability_RY, label_R, names(probability_RY))
    everything = list(range(probability_RY.shape[1]))
    if len(everything) > 1:  # scikit-learn rejects one class
        loss = reference.log_loss(label_R, np.maximum(probability_RY, 1e-300), labels=everything)
        brier = reference.brier_score_loss(label_R, probability_RY, labels=everything, scale_by_half=False)
        if (np.take_along_axis(probability_RY, label_R[:, None], axis=1) > 1e-12).all():
            assert result["nll"] == pytest.approx(loss, rel=1e-6, abs=1e-9)
        assert result["brier"] == pytest.approx(brier, abs=1e-9)
    else:
        assert (result["nll"], result["brier"]) == pytest.approx((0, 0))


@given(labelled(), st.integers(1, 8))
def test_top_k_equals_scikit_learns_where_no_probabilities_are_equal(inputs, k):
    probability_RY, label_R = inputs
    classes = probability_RY.shape[1]
    untied_RY = probability_RY + np.random.default_rng(k).random(probability_RY.shape)
    ours = is_in_top(untied_RY, label_R, k=k).mean()
    if classes > 2 and k < classes:  # scikit-learn takes binary probabilities in another shape
        expected = reference.top_k_accuracy_score(label_R, untied_RY, k=k, labels=range(classes))
        assert ours == pytest.approx(expected)
    elif k >= classes:
        assert ours == 1


@pytest.mark.parametrize("classes", [20, 400])
def test_of_equal_probabilities_the_first_classes_count(classes):
    even_1Y = np.full((1, classes), 1 / classes)
    for label in range(0, classes, 3):
        result = classification_metrics(even_1Y, np.array([label]), names(even_1Y))
        assert (result["top1"], result["top5"]) == (label == 0, label < 5)


@given(labelled(may_miss=True))
def test_samples_without_a_label_do_not_count(inputs):
    probability_RY, label_R = inputs
    known_R = label_R >= 0
    with_missing = classification_metrics(probability_RY, label_R, names(probability_RY))
    assert with_missing == classification_metrics(
        probability_RY[known_R], label_R[known_R], names(probability_RY)
    )
    assert with_missing["samples"] == known_R.sum()


@given(labelled(may_miss=True))
def test_results_are_json_and_tensors_give_the_same(inputs):
    probability_RY, label_R = inputs
    result = classification_metrics(probability_RY, label_R, names(probability_RY))
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    tensors = torch.from_numpy(probability_RY), torch.from_numpy(label_R)
    assert classification_metrics(*tensors, names(probability_RY)) == result


def test_a_class_without_samples_has_no_accuracy_and_no_part_in_the_means():
    probability_RY = np.eye(3)[[0, 1, 1]]
    result = classification_metrics(probability_RY, np.array([0, 0, 1]), ["a", "b", "c"])
    assert result["per_class_accuracy"] == {"a": 0.5, "b": 1.0, "c": None}
    assert result["per_class_precision"] == {"a": 1.0, "b": 0.5, "c": None}
    assert result["mean_class_accuracy"] == 0.75
    assert result["f1"] == pytest.approx(2 / 3)


def test_no_labelled_sample_is_an_error():
    with pytest.raises(ValueError, match="at least one labelled sample"):
        classification_metrics(np.ones((2, 1)), np.array([-1, -1]), ["a"])


def test_counts_ignore_negative_labels():
    counts_YY = confusion_matrix(np.array([0, 1, 1]), np.array([0, -1, 0]), classes=2)
    assert counts_YY.tolist() == [[1, 1], [0, 0]]
    assert class_metrics(counts_YY)["recall"][0] == 0.5
