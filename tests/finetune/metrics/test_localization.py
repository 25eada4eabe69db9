"""Localization metrics against a plain implementation of ActivityNet's protocol."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kinemae.finetune.metrics.localization import (
    Detections,
    average_recall,
    class_average_precisions,
    intersection_over_union,
    localization_metrics,
)

TIOUS = (0.3, 0.5, 0.7)
CLASSES = ("a", "b")


def plain_iou(first, second):
    intersection = max(0.0, min(first[1], second[1]) - max(first[0], second[0]))
    union = (first[1] - first[0]) + (second[1] - second[0]) - intersection
    return intersection / union if union > 0 else 0.0


def plain_average_precision(predictions, truths, tiou):
    """Follow the protocol step by step.

    Args:
        predictions: (video, start, end, score).
        truths: (video, start, end).
    """
    taken, right = set(), []
    for video, start, end, _ in sorted(predictions, key=lambda row: -row[3]):
        candidates = [
            (plain_iou((start, end), truth[1:]), number)
            for number, truth in enumerate(truths)
            if truth[0] == video and number not in taken
        ]
        best = max(candidates, key=lambda pair: (pair[0], -pair[1]), default=(-1.0, -1))
        right.append(best[0] >= tiou)
        if right[-1]:
            taken.add(best[1])
    points = [
        (sum(right[: number + 1]) / len(truths), sum(right[: number + 1]) / (number + 1))
        for number in range(len(right))
    ]
    area, last_recall = 0.0, 0.0
    for number, (recall, _) in enumerate(points):
        area += (recall - last_recall) * max(precision for _, precision in points[number:])
        last_recall = recall
    return area


@st.composite
def videos(draw):
    """Random detections with distinct scores and random truths of 1 to 4 videos."""
    count = draw(st.integers(1, 4))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    score = iter(random.permutation(200) / 200)
    detections, truths = [], []
    for _ in range(count):
        sizes = draw(st.integers(0, 12)), draw(st.integers(0, 5))
        for size, out, is_found in (*((sizes[0], detections, True),), (sizes[1], truths, False)):
            start = random.integers(0, 8, size).astype(float)
            time_N2 = np.stack([start, start + random.integers(1, 5, size)], axis=1)
            scores = np.array([next(score) for _ in range(size)]) if is_found else np.ones(size)
            out.append(Detections(time_N2, scores, random.integers(0, 2, size)))
    return detections, truths


@given(videos())
@settings(max_examples=150, deadline=None)
def test_average_precision_equals_the_plain_one(pair):
    detections, truths = pair
    for number in range(2):
        predictions = [
            (video, *times, score)
            for video, found in enumerate(detections)
            for times, score, label in zip(found.time_N2.tolist(), found.score_N, found.class_N, strict=True)
            if label == number
        ]
        true = [
            (video, *times)
            for video, truth in enumerate(truths)
            for times, label in zip(truth.time_N2.tolist(), truth.class_N, strict=True)
            if label == number
        ]

        ap_X = class_average_precisions(detections, truths, number, tious=TIOUS)

        if true:
            expected = [plain_average_precision(predictions, true, tiou) for tiou in TIOUS]
            assert ap_X == pytest.approx(expected, abs=1e-12)
        else:
            assert np.isnan(ap_X).all()


@given(videos())
@settings(max_examples=100, deadline=None)
def test_perfect_detections_have_the_best_scores(pair):
    _, truths = pair
    # Different segments only: of two equal ones only the order is arbitrary.
    perfect = [truth._replace(score_N=np.ones(len(truth.score_N))) for truth in truths]

    scores = localization_metrics(perfect, truths, CLASSES, tious=TIOUS)

    if sum(len(truth.score_N) for truth in truths):
        assert scores["map"] == pytest.approx(1.0)
        assert scores["average_recall_at"]["100"] == pytest.approx(1.0)
        assert set(scores["map_at"]) == {"0.3", "0.5", "0.7"}
    else:
        assert scores["map"] is None and scores["average_recall_at"]["10"] is None


@given(videos(), st.integers(1, 20))
@settings(max_examples=100, deadline=None)
def test_more_proposals_never_lower_the_recall(pair, proposals):
    detections, truths = pair
    if not sum(len(truth.score_N) for truth in truths):
        return

    recalls = [average_recall(detections, truths, proposals=n) for n in (proposals, proposals + 1, 1000)]

    assert 0 <= recalls[0] <= recalls[1] <= recalls[2] <= 1


def test_average_recall_counts_the_best_proposals_of_each_video():
    truth = Detections(np.array([[0.0, 1.0], [2.0, 3.0]]), np.ones(2), np.array([0, 1]))
    time_N2 = np.array([[0.0, 1.0], [2.0, 3.5], [5.0, 6.0]])
    found = Detections(time_N2, np.array([0.5, 0.9, 0.7]), np.array([1, 1, 1]))

    recall = [average_recall([found], [truth], proposals=n, tious=[0.5, 0.9]) for n in (1, 2, 3)]

    assert recall == [0.25, 0.25, 0.75]  # the overlap of 2/3 counts at 0.5 only


def test_a_class_without_true_segments_does_not_count():
    truth = Detections(np.array([[0.0, 1.0]]), np.ones(1), np.array([0]))
    found = Detections(np.array([[0.0, 1.0], [0.0, 1.0]]), np.array([0.9, 0.8]), np.array([0, 1]))

    scores = localization_metrics([found], [truth], CLASSES, tious=TIOUS)

    assert scores["map"] == 1.0 and scores["per_class_ap"] == {"a": 1.0, "b": None}


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 5)), max_size=5))
def test_overlaps_equal_the_plain_ones(pairs):
    time_N2 = np.array([(start, start + length) for start, length in pairs], dtype=float).reshape(-1, 2)

    iou_NN = intersection_over_union(time_N2, time_N2)

    for row, first in enumerate(time_N2):
        for column, second in enumerate(time_N2):
            assert math.isclose(iou_NN[row, column], plain_iou(first, second))
