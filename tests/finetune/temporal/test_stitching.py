"""Predictions of overlapping clips are joined along time."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kinemae.finetune.temporal.stitching import slice_times, stitch


def test_the_time_of_a_slice_is_the_mean_of_its_frames():
    assert slice_times(torch.tensor([[0.0, 1.0, 2.0, 3.0]]), 2).tolist() == [[0.5, 2.5]]


@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.booleans())
@settings(max_examples=60, deadline=None)
def test_clips_that_agree_are_joined_without_a_change(seed, clips, is_aligned):
    random = np.random.default_rng(seed)

    def truth(time_N):
        return np.stack([3 * time_N - 1, -time_N], axis=1)  # linear, so interpolation is exact

    starts = random.integers(0, 5, clips) if is_aligned else 5 * random.random(clips)
    times = [start + 0.5 * np.arange(4) for start in starts]

    time_M, values_MY = stitch(times, [truth(time_N) for time_N in times])

    assert time_M.tolist() == sorted(set(np.concatenate(times).round(6).tolist()))
    assert values_MY == pytest.approx(truth(time_M), abs=1e-5)


def test_overlap_is_a_mean_weighted_by_the_distance_from_the_ends():
    first, second = np.arange(0.0, 5.0), np.arange(3.0, 8.0)

    time_M, values_M1 = stitch([first, second], [np.zeros((5, 1)), np.ones((5, 1))])

    assert time_M.tolist() == list(range(8))
    # At 3 the first clip is 1 s from its end and the second at its end, each plus 0.4 s.
    assert values_M1[:, 0] == pytest.approx([0, 0, 0, 0.4 / 1.8, 1.4 / 1.8, 1, 1, 1])


def test_the_order_of_the_clips_and_equal_clips_do_not_matter():
    first, second = np.arange(0.0, 5.0), np.arange(2.0, 7.0)
    values = [np.random.default_rng(0).random((5, 2)) for _ in range(2)]

    _, expected_MY = stitch([first, second], values)

    assert stitch([second, first], values[::-1])[1] == pytest.approx(expected_MY)
    assert stitch([first, first, second, second], [values[0]] * 2 + [values[1]] * 2)[1] == pytest.approx(
        expected_MY
    )


def test_padding_of_a_short_video_counts_once():
    time_M, values_M1 = stitch([np.array([0.0, 1.0, 1.0])], [np.array([[1.0], [2.0], [9.0]])])

    assert time_M.tolist() == [0.0, 1.0] and values_M1[:, 0].tolist() == [1.0, 2.0]
