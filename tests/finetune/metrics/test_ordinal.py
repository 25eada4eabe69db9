"""Ordinal metrics equal scikit-learn's."""

import numpy as np
import pytest
import sklearn.metrics as reference
from hypothesis import given
from hypothesis import strategies as st

from kinemae.finetune.metrics.ordinal import ordinal_metrics
from tests.finetune.metrics.inputs import SEEDS


@given(SEEDS, st.integers(1, 8), st.integers(1, 40))
def test_metrics_equal_those_of_scikit_learn(seed, classes, samples):
    random = np.random.default_rng(seed)
    prediction_R, label_R = random.integers(classes, size=(2, samples))
    result = ordinal_metrics(prediction_R, label_R, classes=classes)
    assert result["mae_classes"] == pytest.approx(reference.mean_absolute_error(label_R, prediction_R))
    if len(np.union1d(prediction_R, label_R)) > 1:
        kappa = reference.cohen_kappa_score(
            label_R, prediction_R, weights="quadratic", labels=np.arange(classes)
        )
        assert result["quadratic_weighted_kappa"] == pytest.approx(kappa, abs=1e-5)
    else:
        assert result["quadratic_weighted_kappa"] is None


def test_samples_without_a_label_do_not_count():
    label_R = np.array([0, -1, 3, 1])
    result = ordinal_metrics(np.array([0, 2, 1, 2]), label_R, classes=4)
    assert (result["mae_classes"], result["within_one"], result["samples"]) == (1.0, 2 / 3, 3)
    with pytest.raises(ValueError, match="at least one labelled sample"):
        ordinal_metrics(np.zeros(1), np.array([-1]), classes=4)
