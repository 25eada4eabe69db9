"""Scoring: every video once, views averaged, numbers that agree with their plain definitions."""

import json
import logging

import numpy as np
import pytest
import torch

from kinemae.data_tools.command import DataError
from kinemae.finetune.scoring import Vote, average_views, score, wilson_interval


def random_votes(videos, classes, *, seed=0):
    rng = np.random.default_rng(seed)
    probability_RY = rng.dirichlet(np.ones(classes), size=videos)
    label_R = rng.integers(classes, size=videos)
    return [
        Vote(position=position, key=f"video-{position}", label=int(label), probability_Y=probability_Y)
        for position, (label, probability_Y) in enumerate(zip(label_R, probability_RY, strict=True))
    ]


def names(count):
    return [f"class-{position}" for position in range(count)]


@pytest.mark.parametrize("classes", [1, 2, 5, 6, 11])
def test_the_result_equals_plain_counting(classes):
    votes = random_votes(60, classes)
    right = [vote.probability_Y.argmax() == vote.label for vote in votes]
    in_five = [vote.label in np.argsort(vote.probability_Y)[::-1][:5] for vote in votes]

    result = score(votes, names(classes), validation="data")

    assert result["top1"] == pytest.approx(np.mean(right))
    assert result["top5"] == pytest.approx(np.mean(in_five))
    for position, name in enumerate(names(classes)):
        of_class = [hit for hit, vote in zip(right, votes, strict=True) if vote.label == position]
        assert result["per_class"][name] == pytest.approx(np.mean(of_class))
        assert sum(result["confusion"][position]) == len(of_class)
    assert np.trace(result["confusion"]) == sum(right)


def test_a_video_scored_by_two_processes_counts_once():
    votes = random_votes(7, 3)

    assert score(votes + votes[:3], names(3), validation="data") == score(votes, names(3), validation="data")


def test_the_order_of_the_processes_changes_nothing():
    votes = random_votes(20, 8)

    assert score(votes[::-1], names(8), validation="data") == score(votes, names(8), validation="data")


def test_an_unreadable_video_is_named_and_does_not_count():
    votes = random_votes(4, 3)
    broken = Vote(position=9, key="video-9", label=0, probability_Y=None, reason="no video stream")

    result = score([*votes, broken], names(3), validation="data")

    assert result["videos"] == 4
    assert result["skipped"] == [{"key": "video-9", "reason": "no video stream"}]
    assert result["top1"] == score(votes, names(3), validation="data")["top1"]


def test_a_class_without_videos_is_warned_of_and_has_no_accuracy(caplog):
    logging.getLogger("kinemae").propagate = True
    votes = [vote for vote in random_votes(40, 3) if vote.label != 1]

    result = score(votes, names(3), validation="the-data")

    assert result["per_class"]["class-1"] is None
    assert "1 of 3 classes have no video in the-data: class-1" in caplog.text
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_no_readable_video_is_an_error_that_gives_the_first_reason():
    broken = Vote(position=0, key="a", label=0, probability_Y=None, reason="truncated file")

    with pytest.raises(DataError, match=r"no video of the-data could be read.*truncated file"):
        score([broken], names(2), validation="the-data")


def test_views_are_averaged_as_probabilities():
    logits_VY = torch.tensor([[4.0, 0.0, 0.0], [0.0, 1.0, 0.9], [0.0, 1.0, 0.9]])

    probability_Y = average_views(logits_VY)

    each_VY = [np.exp(row) / np.exp(row).sum() for row in logits_VY.numpy()]
    assert np.allclose(probability_Y, np.mean(each_VY, axis=0))
    assert probability_Y.sum() == pytest.approx(1)


def test_the_interval_is_wilsons():
    right, total, z = 40, 200, 1.959963984540054
    share = right / total
    centre = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * np.sqrt(share * (1 - share) / total + z * z / (4 * total * total))

    assert wilson_interval(right, total) == pytest.approx([centre - half, centre + half])
    assert wilson_interval(0, 5)[0] == 0
    assert wilson_interval(5, 5)[1] == 1
