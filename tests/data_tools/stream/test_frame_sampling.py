"""Timestamps of clips: independent of rounded time stamps."""

from collections import Counter
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

import kinemae
from kinemae.data_tools.benchmark import BenchConfig, bench
from kinemae.data_tools.index import Sample, Shard, open_index, write_index
from kinemae.data_tools.stream.augment import AugmentConfig
from kinemae.data_tools.stream.frame_sampling import (
    ClipConfig,
    SlidingClips,
    check_stride,
    clip_span_s,
    evaluation_timestamps_s,
    last_frame_s,
    sliding_clip_count,
    timestamps_from_s,
    training_timestamps_s,
    uses_reference_frames,
    window_frames,
)
from kinemae.data_tools.stream.mixture import BalancedClasses, Concatenation
from kinemae.data_tools.stream.training_clips import TrainingClips

RATES = st.sampled_from([1.0, 12.0, 15.0, 24000 / 1001, 25.0, 30000 / 1001, 30.0, 59.94])
PHASES = st.tuples(st.integers(1, 8), st.integers(0, 7)).filter(lambda pair: pair[1] < pair[0])


def video(frames, rate=1.0, references=(1, 0), frame_step=1):
    return Sample(
        key="k",
        shard=0,
        offset=0,
        length=1,
        crc32=0,
        frames=frames,
        duration_s=frames / rate,
        width=8,
        height=8,
        codec="h264",
        label=0,
        name="k.mp4",
        reference_stride=references[0],
        reference_phase=references[1],
        frame_step=frame_step,
    )


@st.composite
def videos(draw):
    return video(draw(st.integers(1, 300)), draw(RATES), draw(PHASES))


@st.composite
def clips(draw):
    kind = draw(st.sampled_from(["stride", "fps", "uniform"]))
    settings = {
        "stride": lambda: {"stride": draw(st.integers(1, 9))},
        "fps": lambda: {"fps": draw(st.sampled_from([0.5, 3.0, 4.0, 7.5, 12.0, 15.0, 25.0, 60.0]))},
        "uniform": lambda: {"sampling": "uniform"},
    }[kind]()
    short = draw(st.sampled_from(["hold", "loop"]))
    return ClipConfig(frames=draw(st.integers(1, 20)), short_video=short, **settings)


@st.composite
def aligned(draw):
    """A video with reference frames and a clip whose step is a multiple of their stride."""
    stride = draw(st.integers(2, 8))
    sample = video(draw(st.integers(1, 200)), draw(RATES), (stride, draw(st.integers(0, stride - 1))))
    step = stride * draw(st.integers(1, 3))
    apart = {"fps": sample.frames / sample.duration_s / step} if draw(st.booleans()) else {"stride": step}
    short = draw(st.sampled_from(["hold", "loop"]))
    return sample, ClipConfig(frames=draw(st.integers(1, 20)), short_video=short, **apart), step


def places_of(timestamps_s, sample):
    """The timestamps in frames of the video; frame n reaches from n to n + 1."""
    return [timestamp_s / sample.duration_s * sample.frames for timestamp_s in timestamps_s]


def frames_of(timestamps_s, sample):
    return [int(place) for place in places_of(timestamps_s, sample)]


def training(sample, clip, number=0):
    return training_timestamps_s(sample, clip, torch.Generator().manual_seed(number))


def every_start(sample, clip, draws):
    return Counter(frames_of(training(sample, clip, number), sample)[0] for number in range(draws))


def every_clip(sample, clip):
    return [
        *(training(sample, clip, number) for number in range(4)),
        *evaluation_timestamps_s(sample, clip, temporal_clips=3),
        *evaluation_timestamps_s(sample, clip, temporal_clips=1),
    ]


@given(frames=st.integers(1, 400), stride=st.integers(1, 8), wanted=st.integers(1, 20), seed=st.integers(0))
def test_a_clip_takes_every_stride_th_frame_and_holds_the_last(frames, stride, wanted, seed):
    sample, clip = video(frames, 29.97), ClipConfig(frames=wanted, stride=stride)

    taken = frames_of(training(sample, clip, seed % 2**32), sample)

    assert taken == [min(taken[0] + k * stride, frames - 1) for k in range(wanted)]
    assert taken[0] == 0 or taken[0] + (wanted - 1) * stride < frames


@given(sample=videos(), clip=clips())
def test_no_timestamp_is_outside_the_video(sample, clip):
    for timestamps_s in every_clip(sample, clip):
        assert len(timestamps_s) == clip.frames
        assert all(0 <= timestamp_s < sample.duration_s for timestamp_s in timestamps_s)


@given(pair=st.one_of(aligned(), st.tuples(videos(), clips())))
def test_timestamps_on_references_are_in_the_middle_of_reference_frames(pair):
    sample, clip = pair[:2]
    if not uses_reference_frames(sample, clip):
        return

    for timestamps_s in every_clip(sample, clip):
        for place in places_of(timestamps_s, sample):
            assert place % 1 == pytest.approx(0.5, abs=1e-6)
            assert int(place) >= sample.reference_phase
            assert (int(place) - sample.reference_phase) % sample.reference_stride == 0


@given(case=aligned())
def test_clips_use_reference_frames_if_possible(case):
    sample, clip, step = case
    stride, phase, span = sample.reference_stride, sample.reference_phase, (clip.frames - 1) * step

    can_hold = phase < sample.frames and (clip.short_video == "hold" or sample.frames % stride == 0)
    fits = phase + span < sample.frames
    assert uses_reference_frames(sample, clip) == (fits or (span >= sample.frames and can_hold))


@given(frames=st.integers(1, 30), references=PHASES, stride=st.integers(1, 9), wanted=st.integers(1, 6))
def test_training_uses_all_starts_that_fit_and_no_others(frames, references, stride, wanted):
    sample, clip = video(frames, references=references), ClipConfig(frames=wanted, stride=stride)
    fitting = [start for start in range(frames) if start + (wanted - 1) * stride < frames]
    if uses_reference_frames(sample, clip):
        fitting = [start for start in fitting if start % references[0] == references[1]] or [references[1]]

    # The chance that so many draws miss one of n starts is below n * exp(-30).
    assert set(every_start(sample, clip, 30 * max(len(fitting), 1))) == set(fitting or [0])


@pytest.mark.parametrize("references, starts", [((1, 0), range(33)), ((4, 3), range(3, 33, 4))])
def test_starts_are_drawn_equally_often(references, starts):
    sample = video(45, references=references)

    drawn = every_start(sample, ClipConfig(frames=4, stride=4), 6000)

    expected = 6000 / len(starts)
    assert sorted(drawn) == list(starts)
    # The 0.9999 quantile of chi-squared with 32 degrees of freedom is 71; fewer degrees, a smaller one.
    assert sum((count - expected) ** 2 / expected for count in drawn.values()) < 71


@given(sample=videos(), clip=clips(), temporal_clips=st.integers(1, 9))
def test_evaluation_clips_are_spread_evenly_from_the_first_to_the_last_start(sample, clip, temporal_clips):
    assume(clip.sampling == "dense")
    firsts = [
        places_of(timestamps_s, sample)[0]
        for timestamps_s in evaluation_timestamps_s(sample, clip, temporal_clips=temporal_clips)
    ]
    step = sample.reference_stride if uses_reference_frames(sample, clip) else 1
    gaps = [after - before for before, after in pairwise(firsts)]
    possible = [places_of(training(sample, clip, number), sample)[0] for number in range(30)]

    assert len(firsts) == temporal_clips
    assert all(gap >= 0 for gap in gaps)
    assert max(gaps, default=0) - min(gaps, default=0) <= step + 1e-6
    if temporal_clips > 1:
        assert firsts[0] - 1e-6 <= min(possible) and max(possible) <= firsts[-1] + 1e-6


def test_a_single_evaluation_clip_is_the_middle_one():
    clip = ClipConfig(frames=3, stride=2)
    assert frames_of(evaluation_timestamps_s(video(14), clip, temporal_clips=1)[0], video(14)) == [4, 6, 8]
    aligned = video(15, references=(2, 1))  # may start at 1, 3, 5, 7, 9
    assert frames_of(evaluation_timestamps_s(aligned, clip, temporal_clips=1)[0], aligned) == [5, 7, 9]


@given(every=st.sampled_from([1, 2, 4]), times=st.integers(1, 4), frames=st.integers(1, 200), rate=RATES)
def test_the_stride_counts_frames_of_the_source(every, times, frames, rate):
    stored = video(frames, rate / every, frame_step=every)
    plain = video(frames, rate / every)
    clip = ClipConfig(frames=5, stride=every * times)

    assert stored.source_fps == pytest.approx(rate)
    assert training(stored, clip) == training(plain, replace(clip, stride=times))
    assert clip_span_s(stored, clip) == clip_span_s(plain, replace(clip, stride=times))
    by_rate = replace(clip, stride=4, fps=rate)
    assert training(stored, by_rate) == training(plain, by_rate)  # a frame rate needs no source


@pytest.mark.parametrize("every, stride, frames", [(2, 3, [0, 2, 3]), (4, 6, [0, 2, 3])])
def test_other_strides_take_the_stored_frames_on_screen(every, stride, frames):
    sample, clip = video(9, frame_step=every), ClipConfig(frames=3, stride=stride)
    assert frames_of(timestamps_from_s(sample, clip, 0.0), sample) == frames


def test_a_stride_below_the_distance_of_stored_frames_is_an_error(tmp_path):
    samples = [video(9, frame_step=every) for every in (1, 2, 4)]
    write_index(tmp_path, samples, [Shard(name="a.tar", samples=3, bytes=3, sha256="")], [], {})
    (tmp_path / "a.tar").write_bytes(b"tar")
    index = open_index(tmp_path)
    for clip in (ClipConfig(), ClipConfig(fps=30), ClipConfig(sampling="uniform")):
        check_stride(index, clip)
    check_stride(index.view([0]), ClipConfig(stride=1))
    message = "clip.stride: expected at least 4, because .* has only one of 4 frames .*, got 1; fix: set"
    settings: dict[str, Any] = {"clip": ClipConfig(stride=1), "augment": AugmentConfig(), "seed": 0}
    balanced = BalancedClasses(index, [0, 0, 0], balance=1.0)
    for read in (
        lambda: check_stride(index, settings["clip"]),
        lambda: training(samples[2], settings["clip"]),
        lambda: kinemae.clips(tmp_path, settings["clip"]),
        lambda: bench(index, BenchConfig(clip=settings["clip"])),
        *(
            lambda source=source: TrainingClips(source, **settings)
            for source in (balanced, Concatenation({"a": index.view([0]), "b": index}))
        ),
    ):
        with pytest.raises(ValueError, match=message):
            read()


def test_a_short_video_starts_again_under_loop():
    clip = ClipConfig(frames=5, stride=2, short_video="loop")
    assert frames_of(training(video(3), clip), video(3)) == [0, 2, 1, 0, 2]


def test_a_short_video_on_references_holds_its_last_reference_frame():
    clip, sample = ClipConfig(frames=5, stride=4), video(15, references=(4, 1))
    assert uses_reference_frames(sample, clip)
    assert frames_of(training(sample, clip), sample) == [1, 5, 9, 13, 13]


def test_a_loop_uses_references_only_if_the_length_is_a_multiple_of_the_stride():
    clip = ClipConfig(frames=5, stride=4, short_video="loop")
    whole, odd = video(12, references=(4, 2)), video(13, references=(4, 2))
    assert uses_reference_frames(whole, clip) and not uses_reference_frames(odd, clip)
    assert frames_of(training(whole, clip), whole) == [2, 6, 10, 2, 6]
    assert frames_of(training(odd, clip), odd) == [0, 4, 8, 12, 3]


def test_a_clip_that_fits_never_repeats_a_frame_to_use_references_only():
    clip, sample = ClipConfig(frames=3, stride=4), video(9, references=(4, 3))
    assert not uses_reference_frames(sample, clip)
    assert frames_of(training(sample, clip), sample) == [0, 4, 8]


@given(sample=videos(), fps=st.floats(0.5, 60), wanted=st.integers(2, 16))
def test_clip_fps_gives_the_frames_on_screen_at_that_rate(sample, fps, wanted):
    clip = ClipConfig(frames=wanted, fps=fps)
    assume((wanted - 1) / fps < (sample.frames - 1) / sample.frames * sample.duration_s)

    timestamps_s = training(sample, clip)

    # The last may be moved by up to half a frame inside its frame, any other by less.
    off = [timestamp_s - timestamps_s[0] - k / fps for k, timestamp_s in enumerate(timestamps_s)]
    assert max(map(abs, off)) <= 0.501 * sample.duration_s / sample.frames
    exact = places_of([timestamps_s[0] + k / fps for k in range(wanted)], sample)
    for place, frame in zip(exact, frames_of(timestamps_s, sample), strict=True):
        later = min(round(place), sample.frames - 1)
        distance = abs(place - round(place))
        assert frame == (int(place) if distance > 0.051 else later) or 0.049 < distance < 0.051


def test_at_twice_the_videos_rate_every_frame_is_shown_twice():
    sample, clip = video(139, 30.0), ClipConfig(frames=7, fps=60.0)
    first, *rest = frames_of(training(sample, clip), sample)
    assert rest == [first + k for k in (1, 1, 2, 2, 3, 3)]


def test_clip_fps_does_not_depend_on_the_videos_rate():
    clip = ClipConfig(frames=8, fps=4.0)
    for rate in (8.0, 12.0, 25.0, 30000 / 1001, 60.0):
        sample = video(round(10 * rate), rate)
        timestamps_s = training(sample, clip)
        assert timestamps_s[-1] - timestamps_s[0] == pytest.approx(7 / 4, abs=0.25 / rate)


@pytest.mark.parametrize(
    "rate, fps, aligned",
    [
        (30.0, 7.5, True),
        (30.0, 3.75, True),
        (30.0, 7.0, False),
        (30.0, 10.0, False),
        (30000 / 1001, 7.5, True),
    ],
)
def test_clip_fps_uses_references_if_it_equals_a_stride(rate, fps, aligned):
    sample = video(240, rate, (4, 2))
    assert uses_reference_frames(sample, ClipConfig(frames=16, fps=fps)) == aligned


@given(sample=videos(), wanted=st.integers(1, 20), seed=st.integers(0, 1000))
def test_uniform_sampling_takes_one_frame_of_each_segment(sample, wanted, seed):
    clip = ClipConfig(frames=wanted, sampling="uniform")

    taken = frames_of(training(sample, clip, seed), sample)

    segment = sample.frames / wanted
    for number, frame in enumerate(taken):
        assert int(number * segment) <= frame <= (number + 1) * segment
    assert not uses_reference_frames(sample, clip)


def test_uniform_sampling_reaches_every_frame_of_a_segment():
    clip = ClipConfig(frames=3, sampling="uniform")
    drawn = [frames_of(training(video(12), clip, number), video(12)) for number in range(200)]
    assert [sorted(set(segment)) for segment in zip(*drawn, strict=True)] == [
        [0, 1, 2, 3],
        [4, 5, 6, 7],
        [8, 9, 10, 11],
    ]


def test_uniform_evaluation_takes_the_middles_and_spreads_several_clips_inside_the_segments():
    clip, sample = ClipConfig(frames=3, sampling="uniform"), video(30)
    middles = [frames_of(one, sample) for one in evaluation_timestamps_s(sample, clip, temporal_clips=1)]
    halves = [frames_of(one, sample) for one in evaluation_timestamps_s(sample, clip, temporal_clips=2)]
    assert middles == [[5, 15, 25]]
    assert halves == [[2, 12, 22], [7, 17, 27]]


@st.composite
def windows(draw):
    """A video, and a time window of it."""
    sample = draw(videos())
    begin, end = sorted((draw(st.floats(0, 1)), draw(st.floats(0, 1))))
    assume(begin < end)
    return replace(sample, window_s=(begin * sample.duration_s, end * sample.duration_s))


@given(sample=windows(), clip=clips())
def test_clips_of_a_time_window_take_only_its_frames(sample, clip):
    inside = window_frames(sample)
    period_s = sample.duration_s / sample.frames

    for timestamps_s in every_clip(sample, clip):
        assert set(frames_of(timestamps_s, sample)) <= set(inside)
    if len(inside) > 1:
        for frame in inside:
            assert sample.window_s[0] - 1e-9 <= (frame + 0.5) * period_s < sample.window_s[1] + 1e-9


@given(sample=videos(), cut=st.floats(0.01, 0.99))
def test_windows_that_meet_share_no_frame_and_lose_none(sample, cut):
    cut_s = cut * sample.duration_s
    left = replace(sample, window_s=(0.0, cut_s))
    right = replace(sample, window_s=(cut_s, sample.duration_s))
    period_s = sample.duration_s / sample.frames
    assume(0.5 * period_s < cut_s < sample.duration_s - 0.5 * period_s)  # none is shorter than a frame

    assert [*window_frames(left), *window_frames(right)] == list(range(sample.frames))


@given(sample=videos(), clip=clips())
def test_the_window_of_the_whole_video_changes_nothing(sample, clip):
    whole = replace(sample, window_s=(0.0, sample.duration_s))
    assert every_clip(whole, clip) == every_clip(sample, clip)
    assert uses_reference_frames(whole, clip) == uses_reference_frames(sample, clip)


@given(pair=st.tuples(windows(), clips()))
def test_a_window_of_references_keeps_to_reference_frames(pair):
    sample, clip = pair
    if uses_reference_frames(sample, clip):
        for timestamps_s in every_clip(sample, clip):
            for frame in frames_of(timestamps_s, sample):
                assert (frame - sample.reference_phase) % sample.reference_stride == 0


@given(sample=st.one_of(videos(), windows()), clip=clips(), overlap=st.floats(0, 0.9))
def test_sliding_clips_leave_no_gap_and_end_at_the_last_frame(sample, clip, overlap):
    assume(clip.sampling == "dense")
    count = sliding_clip_count(sample, clip, SlidingClips(overlap=overlap))
    found = [
        places_of(timestamps_s, sample)
        for timestamps_s in evaluation_timestamps_s(sample, clip, temporal_clips=count)
    ]

    inside = window_frames(sample)
    step = clip.stride if clip.fps is None else sample.frames / sample.duration_s / clip.fps
    unit = sample.reference_stride if uses_reference_frames(sample, clip) else 1
    allowed = max(clip.frames * step * (1 - overlap), unit) + unit  # starts are rounded to whole frames
    assert all(after[0] - before[0] <= allowed for before, after in pairwise(found))
    if count > 1:
        assert int(found[0][0]) - inside.start < unit
        assert inside.stop - 1 - int(found[-1][-1]) < max(unit, step)


def test_sliding_clips_of_a_rate_have_equal_steps():
    sample, clip = video(300, 30.0), ClipConfig(frames=8, fps=7.5)
    count = sliding_clip_count(sample, clip, SlidingClips(step_s=1.0))
    firsts = [one[0] for one in evaluation_timestamps_s(sample, clip, temporal_clips=count)]
    # The last start is 9.03 s; ten steps of at most a second reach it.
    assert count == 11 and firsts[0] * 30 == pytest.approx(0.5) and firsts[-1] * 30 == pytest.approx(271.5)
    assert all(after - before == pytest.approx(271 / 300, abs=1 / 30) for before, after in pairwise(firsts))


def test_the_last_frame_starts_one_period_before_the_end():
    assert last_frame_s(4, 2.0) == 1.5


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"frames": 0}, "clip.frames must be at least 1, got 0"),
        ({"stride": 0}, "clip.stride must be at least 1, got 0"),
        ({"size": 0}, "clip.size must be at least 1, got 0"),
        ({"short_video": "pad"}, "clip.short_video must be hold or loop, got 'pad'"),
        ({"sampling": "tsn"}, "clip.sampling must be dense or uniform, got 'tsn'"),
        ({"fps": 0.0}, "clip.fps must be above 0, or null for clip.stride, got 0"),
        ({"fps": 4.0, "stride": 2}, "clip.stride must be omitted with clip.fps=4, got 2"),
        ({"sampling": "uniform", "stride": 2}, "clip.stride must be omitted with clip.sampling=uniform"),
        ({"sampling": "uniform", "fps": 4.0}, "clip.fps must be omitted with clip.sampling=uniform"),
    ],
)
def test_an_invalid_clip_config_is_an_error(wrong, message):
    with pytest.raises(ValueError, match=message):
        ClipConfig(**wrong)
