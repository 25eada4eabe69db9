"""Frame times computed from time stamps, without a video."""

from dataclasses import dataclass
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kinemae.data_tools.stream.timestamps import FrameClock


@dataclass
class Stamped:
    """A packet or a frame: its number and its stamps."""

    number: int
    pts: int | None
    dts: int | None
    duration: int = 1


def timed(stamps, *, depth=0, step=1):
    """The times of frames with these (pts, dts) in output order; decoded `depth` frames late."""
    clock, given = FrameClock(step), []
    frames = [Stamped(number, pts, dts) for number, (pts, dts) in enumerate(stamps)]
    for number in range(len(frames) + depth):
        if number < len(frames):
            clock.send(Stamped(number, sorted(stamps, key=decoding)[number][0], None), depth)
        if number >= depth:
            given.extend(clock.receive(frames[number - depth]))
    given.extend(clock.flush())
    assert [frame.number for frame in given] == list(range(len(frames))), "each once, in order"
    return [frame.pts for frame in given], clock.is_repaired


def decoding(pair):
    return pair[0] if pair[0] is not None else -1


@pytest.mark.parametrize(
    "stamps, times",
    [
        ([(0, 0), (2, 1), (3, 2), (9, 3)], [0, 2, 3, 9]),  # a variable rate
        ([(0, 0), (10, 10), (10, 10), (20, 20)], [0, 10, 15, 20]),  # equal stamps of both kinds
        ([(0, None), (None, None), (None, None), (30, None)], [0, 10, 20, 30]),  # missing stamps
        ([(None, 4), (None, 5), (None, 6)], [4, 5, 6]),  # only decoding stamps
        ([(None, None)] * 3, [0, 1, 2]),  # none at all
        ([(1, 1), (2, 2), (4, 3), (3, 4), (5, 5), (7, 6), (6, None)], [1, 2, 4, 5, 6, 7, 8]),  # UCF101's
        ([(-3, -3), (-2, -2), (-1, -1)], [-3, -2, -1]),
    ],
)
def test_each_frame_gets_a_later_time_than_the_one_before(stamps, times):
    got, is_repaired = timed(stamps)
    assert got == times
    assert is_repaired == ([pts for pts, _ in stamps] != times)


def test_stamps_in_decoding_order_are_detected_before_the_first_wrong_frame():
    # As FFmpeg gives H.264 with B frames from AVI: 2 frames late, presentation stamps in decoding order.
    stamps = [(1, 2), (3, 3), (2, 4), (5, 5), (6, 6), (4, 7), (8, 8), (9, None), (7, None)]
    assert timed(stamps, depth=2)[0] == [1, 2, 3, 4, 5, 6, 7, 8, 9]


def test_the_time_advances_if_stamps_decrease_permanently():
    stamps = [(number, number) for number in [*range(100, 130), *range(20)]]
    assert timed(stamps)[0] == list(range(100, 150))


def test_a_packet_without_a_frame_has_no_effect():
    clock = FrameClock(1)
    clock.send(Stamped(0, -5, None), 1)  # a leading picture, which the decoder drops
    given = []
    for number in range(6):
        clock.send(Stamped(number, number, number), 1)
        given.extend(clock.receive(Stamped(number, number, number)))
    assert [frame.pts for frame in given] == list(range(6)) and not clock.is_repaired


@given(st.lists(st.tuples(*[st.none() | st.integers(-50, 200)] * 2), min_size=1, max_size=60))
def test_any_stamps_give_every_frame_once_at_increasing_times(stamps):
    times, _ = timed(stamps)
    assert all(one < other for one, other in pairwise(times))
