"""Frame times: arithmetic that no rounding of time stamps can upset."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_tools.stream.times import ClipConfig, evaluation_instants_s, last_frame_s, training_instants_s

SHARES = st.floats(0, 1, exclude_max=True)


def frame_numbers(instants_s, frames, duration_s):
    return [int(instant / duration_s * frames) for instant in instants_s]


@given(frames=st.integers(1, 400), stride=st.integers(1, 8), wanted=st.integers(1, 20), share=SHARES)
def test_a_clip_takes_every_stride_th_frame_and_holds_the_last(frames, stride, wanted, share):
    clip = ClipConfig(frames=wanted, stride=stride)
    duration_s = frames / 29.97
    taken = frame_numbers(
        training_instants_s(frames, duration_s, clip, start_share=share), frames, duration_s
    )
    assert taken == [min(taken[0] + k * stride, frames - 1) for k in range(wanted)]
    assert taken[0] == 0 or taken[0] + clip.span <= frames


def test_instants_lie_in_the_middle_of_their_frames():
    assert training_instants_s(4, 2.0, ClipConfig(frames=4, stride=1), start_share=0.5) == [
        0.25,
        0.75,
        1.25,
        1.75,
    ]


def test_every_start_that_fits_is_drawn_equally_often():
    clip = ClipConfig(frames=3, stride=2)
    starts = [
        frame_numbers(training_instants_s(9, 9.0, clip, start_share=(n + 0.5) / 50), 9, 9.0)[0]
        for n in range(50)
    ]
    assert [starts.count(start) for start in range(5)] == [10] * 5


def test_a_short_video_starts_again_under_loop():
    clip = ClipConfig(frames=5, stride=2, short_video="loop")
    assert frame_numbers(training_instants_s(3, 3.0, clip, start_share=0.9), 3, 3.0) == [0, 2, 1, 0, 2]


@given(frames=st.integers(1, 200), temporal_clips=st.integers(1, 9))
def test_evaluation_clips_reach_from_the_first_start_to_the_last(frames, temporal_clips):
    clip = ClipConfig(frames=4, stride=3)
    clips = evaluation_instants_s(frames, float(frames), clip, temporal_clips=temporal_clips)
    starts = [frame_numbers(instants_s, frames, float(frames))[0] for instants_s in clips]
    room = max(frames - clip.span, 0)
    assert len(starts) == temporal_clips and starts == sorted(starts)
    assert (starts[0], starts[-1]) == (0, room) if temporal_clips > 1 else starts == [room // 2]


def test_the_last_frame_starts_one_period_before_the_end():
    assert last_frame_s(4, 2.0) == 1.5


@pytest.mark.parametrize("field", ["frames", "stride", "size"])
def test_a_clip_of_nothing_is_refused(field):
    with pytest.raises(ValueError, match=f"clip.{field} must be at least 1, got 0"):
        ClipConfig(**{field: 0})


def test_an_unknown_policy_for_short_videos_is_refused():
    with pytest.raises(ValueError, match=r"clip.short_video must be hold or loop, got 'pad'"):
        ClipConfig(short_video="pad")
