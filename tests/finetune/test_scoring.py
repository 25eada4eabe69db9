"""Scoring: each video counts once, views are averaged, and the metrics equal their definitions."""

import json
import logging

import numpy as np
import pytest
import torch

from kinemae.data_tools.command import DataError
from kinemae.finetune.scoring import VideoPrediction, average_views, score, wilson_interval


def random_predictions(videos, classes, *, seed=0):
    rng = np.random.default_rng(seed)
    probability_RY = rng.dirichlet(np.ones(classes), size=videos)
    label_R = rng.integers(classes, size=videos)
    return [
        VideoPrediction(position=i, key=f"video-{i}", label=int(label_R[i]), probability_Y=probability_RY[i])
        for i in range(videos)
    ]


def names(count):
    return [f"class-{position}" for position in range(count)]


def scored(predictions, classes):
    return score(predictions, names(classes), validation="data")


@pytest.mark.parametrize("classes", [1, 2, 5, 6, 11])
def test_metrics_equal_plain_counting(classes):
    predictions = random_predictions(60, classes)
    correct = [each.probability_Y.argmax() == each.label for each in predictions]
    in_five = [each.label in np.argsort(each.probability_Y)[::-1][:5] for each in predictions]

    result = scored(predictions, classes)

    assert result["top1"] == pytest.approx(np.mean(correct))
    assert result["top5"] == pytest.approx(np.mean(in_five))
    for position, name in enumerate(names(classes)):
        of_class = [hit for hit, each in zip(correct, predictions, strict=True) if each.label == position]
        assert result["per_class_accuracy"][name] == pytest.approx(np.mean(of_class))
        assert sum(result["confusion_matrix"][position]) == len(of_class)
    assert np.trace(result["confusion_matrix"]) == sum(correct)


@pytest.mark.parametrize("classes", [20, 400])
def test_of_equal_probabilities_the_first_classes_count(classes):
    even = np.full(classes, 1 / classes)
    for label in range(classes):
        video = VideoPrediction(position=0, key="a", label=label, probability_Y=even)
        result = scored([video], classes)
        assert (result["top1"], result["top5"]) == (label == 0, label < 5)


def test_a_video_scored_by_two_processes_counts_once_in_any_order():
    predictions = random_predictions(20, 8)

    assert scored(predictions + predictions[:3], 8) == scored(predictions, 8)
    assert scored(predictions[::-1], 8) == scored(predictions, 8)


def test_an_unreadable_video_is_named_and_does_not_count():
    predictions = random_predictions(4, 3)
    broken = VideoPrediction(position=9, key="video-9", label=0, probability_Y=None, error="no video stream")

    result = scored([*predictions, broken], 3)

    assert result["videos"] == 4
    assert result["skipped"] == [{"key": "video-9", "error": "no video stream"}]
    assert result["top1"] == scored(predictions, 3)["top1"]


def test_a_class_without_videos_is_logged_and_has_no_accuracy(caplog):
    logging.getLogger("kinemae").propagate = True
    predictions = [each for each in random_predictions(40, 3) if each.label != 1]

    result = score(predictions, names(3), validation="the-data")

    assert result["per_class_accuracy"]["class-1"] is None
    assert "the-data: 1 of 3 classes have no video: class-1" in caplog.text
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_an_evaluation_without_a_readable_video_raises_with_the_first_error():
    broken = VideoPrediction(position=0, key="a", label=0, probability_Y=None, error="truncated file")

    with pytest.raises(DataError, match=r"the-data: expected readable videos, got none.*truncated file"):
        score([broken], names(2), validation="the-data")


def test_views_are_averaged_as_probabilities():
    logits_VY = torch.tensor([[4.0, 0.0, 0.0], [0.0, 1.0, 0.9], [0.0, 1.0, 0.9]])

    probability_Y = average_views(logits_VY)

    each_VY = [np.exp(row) / np.exp(row).sum() for row in logits_VY.numpy()]
    assert np.allclose(probability_Y, np.mean(each_VY, axis=0))
    assert probability_Y.sum() == pytest.approx(1)


def test_the_interval_is_wilsons():
    correct, total, z = 40, 200, 1.959963984540054
    fraction = correct / total
    centre = (fraction + z * z / (2 * total)) / (1 + z * z / total)
    variance = fraction * (1 - fraction) / total + z * z / (4 * total * total)
    half = z / (1 + z * z / total) * np.sqrt(variance)

    assert wilson_interval(correct, total) == pytest.approx([centre - half, centre + half])
    assert wilson_interval(0, 5)[0] == 0
    assert wilson_interval(5, 5)[1] == 1
