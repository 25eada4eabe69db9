"""Detections: times of clips, decoding of a pyramid, soft-NMS."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kinemae.finetune.metrics.localization import Detections, intersection_over_union
from kinemae.finetune.temporal.detections import ClipTimes, decode, soft_nms


def test_the_fractions_of_a_clip_cover_its_frames():
    times = ClipTimes.of(np.array([2.5, 3.5, 4.5, 5.5]))

    assert times.seconds(np.array([0.0, 0.125, 0.5, 1.0])).tolist() == [2.0, 2.5, 4.0, 6.0]
    assert times.seconds(np.array([-1.0, 2.0])).tolist() == [2.0, 6.0]
    assert times.fractions(np.array([2.0, 4.0, 6.0, 9.0])).tolist() == [0.0, 0.5, 1.0, 1.0]


def test_padding_of_a_short_video_has_the_time_of_its_end():
    times = ClipTimes.of(np.array([0.5, 1.5, 1.5, 1.5]))

    assert times.seconds(np.array([0.0, 0.25, 0.5, 0.75, 1.0])).tolist() == [0.0, 1.0, 2.0, 2.0, 2.0]
    assert times.fractions(np.array([1.0, 2.0])).tolist() == [0.25, 0.5]


def test_a_position_decodes_to_the_segment_around_its_centre():
    times = ClipTimes.of(np.array([2.5, 3.5, 4.5, 5.5]))
    prediction_PX = np.array([[0.9, 0.2, 0.25, 0.125, 0.375, 0.25], [0.05, 0.01, 0.5, 0.5, 0.625, 0.25]])

    found = decode(prediction_PX, times, min_score=0.1)

    assert found.time_N2.tolist() == [[2.5, 4.0], [2.5, 4.0]]
    assert found.score_N.tolist() == [0.9, 0.2] and found.class_N.tolist() == [0, 1]


def plain_soft_nms(rows, sigma, min_score):
    """Rows of (start, end, score) of one class."""
    rows, kept = [list(row) for row in rows], []
    while rows:
        best = max(rows, key=lambda row: row[2])
        rows.remove(best)
        if best[2] < min_score:
            break
        kept.append(tuple(best))
        for row in rows:
            iou = intersection_over_union(np.array([best[:2]]), np.array([row[:2]]))[0, 0]
            row[2] *= math.exp(-(iou**2) / sigma)
    return kept


@given(st.integers(0, 2**32 - 1), st.integers(0, 15), st.sampled_from([0.1, 0.5]))
@settings(max_examples=100, deadline=None)
def test_soft_nms_equals_the_plain_one_per_class(seed, size, sigma):
    random = np.random.default_rng(seed)
    start = random.random(size) * 5
    time_N2 = np.stack([start, start + 0.1 + random.random(size) * 3], axis=1)
    found = Detections(time_N2, random.random(size), random.integers(0, 2, size))

    kept = soft_nms(found, sigma=sigma, min_score=0.05, most=100)

    expected = []
    for number in range(2):
        mine = found.take(np.flatnonzero(found.class_N == number))
        rows = [(*times, score) for times, score in zip(mine.time_N2.tolist(), mine.score_N, strict=True)]
        expected += [(*row, number) for row in plain_soft_nms(rows, sigma, 0.05)]
    expected.sort(key=lambda row: -row[2])
    assert kept.time_N2 == pytest.approx(np.array([row[:2] for row in expected]).reshape(-1, 2))
    assert kept.score_N == pytest.approx(np.array([row[2] for row in expected]))
    assert kept.class_N.tolist() == [row[3] for row in expected]


def test_equal_detections_of_two_windows_become_one_strong_and_one_weak():
    time_N2 = np.array([[1.0, 2.0], [1.0, 2.0], [5.0, 6.0]])
    found = Detections(time_N2, np.array([0.9, 0.8, 0.3]), np.zeros(3, dtype=np.int64))

    kept = soft_nms(found, sigma=0.5, min_score=0.2, most=10)

    assert kept.time_N2.tolist() == [[1.0, 2.0], [5.0, 6.0]]
    assert soft_nms(found, sigma=0.5, min_score=0.2, most=1).score_N.tolist() == [0.9]
