"""Direction of metrics: perfect predictions are better than random ones in every metric."""

import numpy as np
import pytest

from kinemae.finetune.metrics.calibration import calibration_metrics
from kinemae.finetune.metrics.classification import classification_metrics
from kinemae.finetune.metrics.direction import is_maximized
from kinemae.finetune.metrics.multilabel import multilabel_metrics
from kinemae.finetune.metrics.ordinal import ordinal_metrics
from kinemae.finetune.metrics.regression import regression_metrics
from kinemae.finetune.metrics.retrieval import Embeddings, retrieval_metrics
from kinemae.finetune.report.metric_names import metric

NAMES = ("a", "b", "c", "d", "e", "f", "g")
DRAWS = np.random.default_rng(0)
LABEL_R = np.arange(140) % len(NAMES)
TRUE_RY = np.eye(len(NAMES))[LABEL_R]
RANDOM_RY = DRAWS.dirichlet(np.ones(len(NAMES)), size=len(LABEL_R))
NUMBER_R = DRAWS.normal(size=len(LABEL_R))


@pytest.mark.parametrize(
    ("compute", "perfect", "random"),
    [
        (lambda each: classification_metrics(each, LABEL_R, NAMES), TRUE_RY, RANDOM_RY),
        (lambda each: calibration_metrics(each, LABEL_R), TRUE_RY, RANDOM_RY),
        (lambda each: multilabel_metrics(each, TRUE_RY, NAMES), TRUE_RY, RANDOM_RY),
        (lambda each: ordinal_metrics(each, LABEL_R, classes=7), LABEL_R, DRAWS.permutation(LABEL_R)),
        (lambda each: regression_metrics(each, NUMBER_R), NUMBER_R, DRAWS.permutation(NUMBER_R)),
        (lambda each: retrieval_metrics(Embeddings(each, LABEL_R)), TRUE_RY, DRAWS.normal(size=(140, 4))),
    ],
)
def test_perfect_predictions_are_better_than_random_ones(compute, perfect, random):
    best, worse = compute(perfect), compute(random)
    scores = [name for name, value in best.items() if isinstance(value, int | float)]

    assert scores
    for name in scores:
        if is_maximized(name) is None:
            assert best[name] == worse[name], name
        else:
            assert is_maximized(name) == (best[name] > worse[name]), name
            assert metric(name).maximize == is_maximized(name), name


def test_the_last_part_of_a_name_decides():
    for name in ("speed/rmse", "columns.speed.rmse", "mean_rmse", "standardized_mae", "loss"):
        assert is_maximized(name) is False and metric(name).maximize is False
    for name in (
        "columns.side.top1",
        "mean_top1",
        "mean_class_accuracy",
        "mean_skill",
        "r_at_5",
        "map_at.0.5",
    ):
        assert is_maximized(name) is True and metric(name).maximize is True
    for name in ("lr", "videos", "columns.speed.samples"):
        assert is_maximized(name) is None and metric(name).maximize is None
