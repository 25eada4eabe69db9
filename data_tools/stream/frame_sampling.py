"""Timestamps of the frames of a clip, computed from the index without the video.

A video of `frames` frames and `duration_s` seconds is divided into equal periods. Each timestamp is the
middle of a period, so that rounded time stamps cannot select a neighbouring frame. With a variable frame
rate, a timestamp selects the frame on screen at that time.

If every S-th frame of a video can be decoded without the frames between (`Sample.reference_stride`), a clip
whose step is a multiple of S begins on one of those reference frames and needs no other frame.

A sample with a time window (`Sample.window_s`) is sampled as if its video had only the frames of the window.
"""

import math
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Literal

import torch

from kinemae.data_tools.config import require
from kinemae.data_tools.index import Sample, ShardIndex

_STRIDE = 4
_MAX_DRIFT = 0.25  # in periods, over a whole clip; half a period would reach the next frame
_MARGIN = 0.05  # in periods; milliseconds, the coarsest time stamps in use, are off by 0.03 at 60 fps


@dataclass(frozen=True, kw_only=True)
class ClipConfig:
    """Frames and size of a clip.

    Attributes:
        frames: number of frames.
        stride: the clip takes every stride-th frame of the source video, of which a layout may have stored
            every `Sample.frame_step`-th.
        fps: frames of the clip per second, for any frame rate of the video; replaces `stride`.
        sampling: "dense" takes frames `stride` or 1 / `fps` apart; "uniform" divides the video into `frames`
            equal segments and takes one frame of each.
        size: height and width of a clip in pixels.
        short_video: continuation of a video that is shorter than a dense clip: "hold" repeats its last frame,
            "loop" starts it again.
    """

    ALTERNATIVES: ClassVar[tuple[str, ...]] = ("stride", "fps", "sampling=uniform")

    frames: int = 16
    stride: int = _STRIDE
    fps: float | None = None
    sampling: Literal["dense", "uniform"] = "dense"
    size: int = 224
    short_video: Literal["hold", "loop"] = "hold"

    def __post_init__(self) -> None:
        require(self.frames > 0, "clip.frames", "be at least 1", self.frames)
        require(self.stride > 0, "clip.stride", "be at least 1", self.stride)
        require(self.size > 0, "clip.size", "be at least 1", self.size)
        require(self.short_video in ("hold", "loop"), "clip.short_video", "be hold or loop", self.short_video)
        known = ("dense", "uniform")
        require(self.sampling in known, "clip.sampling", "be dense or uniform", self.sampling)
        if self.fps is not None:
            require(self.fps > 0, "clip.fps", "be above 0, or null for clip.stride", self.fps)
            unset = f"be omitted with clip.fps={self.fps:g}"
            require(self.stride == _STRIDE, "clip.stride", unset, self.stride)
        if self.sampling == "uniform":
            unset = "be omitted with clip.sampling=uniform"
            require(self.stride == _STRIDE, "clip.stride", unset, self.stride)
            require(self.fps is None, "clip.fps", unset, self.fps)


def clip_with(clip: ClipConfig | None, **settings: Any) -> ClipConfig:
    """Change some settings of a clip; a new stride, frame rate or sampling replaces the one of the clip.

    Raises:
        ValueError: unknown or wrong settings.
    """
    given = {name: value for name, value in settings.items() if value is not None}
    names = [field.name for field in fields(ClipConfig)]
    for name in given:
        if name not in names:
            raise ValueError(f"{name}: expected one of {', '.join(names)}; fix: remove or correct it")
    default = ClipConfig()
    if not isinstance(clip, ClipConfig | None):
        raise ValueError(f"clip: expected a ClipConfig, got {type(clip).__name__}; fix: use model.clip")
    if given.keys() & {"stride", "fps", "sampling"}:
        given = {"stride": default.stride, "fps": default.fps, "sampling": default.sampling, **given}
    return replace(clip or default, **given)


@dataclass(frozen=True, kw_only=True)
class SlidingClips:
    """Clips at equal steps over a whole video: their number depends on its duration.

    The first clip begins at the first frame, and the last clip ends at the last frame. The step is the
    largest one, of those that fit, which is not above the configured one.

    Attributes:
        overlap: fraction of a clip that the next clip shows again, at the configured step.
        step_s: seconds from the start of a clip to the start of the next; replaces `overlap`.
    """

    ALTERNATIVES: ClassVar[tuple[str, ...]] = ("overlap", "step_s")

    overlap: float = 0.0
    step_s: float | None = None

    def __post_init__(self) -> None:
        require(0 <= self.overlap < 1, "sliding.overlap", "lie in [0, 1)", self.overlap)
        if self.step_s is not None:
            is_step = 0 < self.step_s < math.inf
            require(is_step, "sliding.step_s", "be above 0, or null for sliding.overlap", self.step_s)
            require(self.overlap == 0, "sliding.overlap", "be omitted with sliding.step_s", self.overlap)


def sliding_clip_count(sample: Sample, clip: ClipConfig, sliding: SlidingClips) -> int:
    """Number of clips that cover a video; 1 if the video is not longer than a clip.

    Raises:
        ValueError: `clip.sampling` is uniform, whose clips cover the whole video.
    """
    require(clip.sampling == "dense", "clip.sampling", "be dense for sliding clips", clip.sampling)
    starts = _starts(sample, clip)
    steps = (len(starts) - 1) * starts.step / max(_sliding_step(sample, clip, sliding), starts.step)
    return 1 + math.ceil(round(steps, 6))


def _sliding_step(sample: Sample, clip: ClipConfig, sliding: SlidingClips) -> float:
    """The configured step in frames of the video."""
    if sliding.step_s is None:
        return clip.frames * frames_between(sample, clip) * (1 - sliding.overlap)
    return sliding.step_s * sample.frames / sample.duration_s


def equal_steps_end_s(sample: Sample, clip: ClipConfig, sliding: SlidingClips) -> float:
    """End of the part of a video that sliding clips cover at exactly the configured step, in seconds.

    As the end of a time window of the sample, it gives clips that begin at multiples of the step. A video
    that is not longer than a clip has one clip.

    Args:
        sample: without a time window and reference frames.
    """
    last_start = _last_start(sample, clip)
    if last_start < 0:
        return sample.duration_s
    step = _sliding_step(sample, clip, sliding)
    start = int(int(last_start / step + 1e-6) * step + 1e-6)
    frames = int(start + 1.5 + (clip.frames - 1) * frames_between(sample, clip))
    return sample.duration_s * min(frames / sample.frames, 1.0)


def training_timestamps_s(sample: Sample, clip: ClipConfig, generator: torch.Generator) -> list[float]:
    """Timestamps of one clip: a random start that fits, or a random time in each segment."""
    if clip.sampling == "uniform":
        draws = torch.rand(clip.frames, generator=generator, dtype=torch.float64)
        return _segment_timestamps_s(sample, draws.tolist())
    starts = _starts(sample, clip)
    draw = torch.rand((), generator=generator, dtype=torch.float64).item()
    return _timestamps_s(sample, clip, start=starts[int(draw * len(starts))])


def evaluation_timestamps_s(sample: Sample, clip: ClipConfig, *, temporal_clips: int) -> list[list[float]]:
    """Timestamps of clips spread evenly over the starts that fit, or over each segment."""
    if clip.sampling == "uniform":
        fractions = [(number + 0.5) / temporal_clips for number in range(temporal_clips)]
        return [_segment_timestamps_s(sample, [fraction] * clip.frames) for fraction in fractions]
    starts = _starts(sample, clip)
    last = len(starts) - 1
    chosen = [last // 2]
    if temporal_clips > 1:
        chosen = [round(number * last / (temporal_clips - 1)) for number in range(temporal_clips)]
    return [_timestamps_s(sample, clip, start=starts[place]) for place in chosen]


def timestamps_from_s(sample: Sample, clip: ClipConfig, start_s: float) -> list[float]:
    """Timestamps of the dense clip that begins with the frame on screen at a time."""
    per_s = sample.frames / sample.duration_s
    return _timestamps_s(sample, clip, start=min(int(start_s * per_s + _MARGIN), sample.frames - 1))


def clip_span_s(sample: Sample, clip: ClipConfig) -> float:
    """Duration of a dense clip: from the start of its first frame to the end of its last frame."""
    return ((clip.frames - 1) * frames_between(sample, clip) + 1) * sample.duration_s / sample.frames


def uses_reference_frames(sample: Sample, clip: ClipConfig) -> bool:
    """Check whether the clips of this video consist of reference frames only."""
    stride, phase = sample.reference_stride, _phase(sample)
    if stride <= 1 or clip.sampling == "uniform" or frames_between(sample, clip) % stride:
        return False
    last_start = _last_start(sample, clip)
    if last_start >= 0:
        return last_start >= phase
    # A loop keeps to reference frames only if the video's length is a multiple of the stride.
    frames = len(window_frames(sample))
    return phase < frames and (clip.short_video == "hold" or frames % stride == 0)


def window_frames(sample: Sample) -> range:
    """The frames of the video from which clips are taken: those whose middle lies in the time window.

    A window without such a frame, shorter than a frame, has the frame on screen at its middle.
    """
    if sample.window_s is None:
        return range(sample.frames)
    per_s = sample.frames / sample.duration_s
    begin, end = (second * per_s for second in sample.window_s)
    first, after = math.ceil(begin - 0.5), min(math.ceil(end - 0.5), sample.frames)
    if first >= after:
        first = min(int((begin + end) / 2), sample.frames - 1)
        after = first + 1
    return range(first, after)


def last_frame_s(frames: int, duration_s: float) -> float:
    """Time at which the last frame comes on screen."""
    return duration_s * (frames - 1) / frames


def _phase(sample: Sample) -> int:
    """The first reference frame, counted from the first frame of the window."""
    return (sample.reference_phase - window_frames(sample).start) % sample.reference_stride


def frames_between(sample: Sample, clip: ClipConfig) -> float:
    """Stored frames per frame of the clip, rounded to an integer if that selects the same frames.

    Raises:
        ValueError: the stride is smaller than the distance of the stored frames.
    """
    if is_too_small_a_stride(clip, sample.frame_step):
        raise ValueError(_too_small_a_stride(f"sample {sample.key}", clip, sample.frame_step))
    if clip.fps is None:
        step = clip.stride / sample.frame_step
        return int(step) if step.is_integer() else step
    step = sample.frames / sample.duration_s / clip.fps
    drift = abs(step - round(step)) * (clip.frames - 1)
    return round(step) if drift <= _MAX_DRIFT else step


def is_too_small_a_stride(clip: ClipConfig, frame_step: int) -> bool:
    """Check whether a clip needs frames between the stored ones."""
    return clip.fps is None and clip.sampling == "dense" and clip.stride < frame_step


def check_stride(index: ShardIndex, clip: ClipConfig) -> None:
    """Reject a stride that is smaller than the distance of the stored frames.

    Raises:
        ValueError: the message names the smallest possible stride.
    """
    if is_too_small_a_stride(clip, index.largest_frame_step):
        raise ValueError(_too_small_a_stride(str(index.folder), clip, index.largest_frame_step))


def _too_small_a_stride(where: str, clip: ClipConfig, every: int) -> str:
    return (
        f"clip.stride: expected at least {every}, because {where} has only one of {every} frames of some "
        f"source videos (column frame_step), got {clip.stride}; fix: set clip.stride={every} or clip.fps, or "
        f"shard the videos with layout.args.every={clip.stride} (h264) or layout.args.stride={clip.stride} "
        "(clips)"
    )


def _last_start(sample: Sample, clip: ClipConfig) -> int:
    """The last frame of the window at which a clip may begin and still fit; below 0 if there is none."""
    return math.ceil(len(window_frames(sample)) - 0.5 - (clip.frames - 1) * frames_between(sample, clip)) - 1


def _starts(sample: Sample, clip: ClipConfig) -> range:
    """The frames of the window at which a clip may begin: reference frames only, if it can stay on them."""
    last_start = _last_start(sample, clip)
    if uses_reference_frames(sample, clip):
        first = _phase(sample)
        return range(first, max(last_start, first) + 1, sample.reference_stride)
    return range(max(last_start, 0) + 1)


def _timestamps_s(sample: Sample, clip: ClipConfig, *, start: int) -> list[float]:
    step = frames_between(sample, clip)
    frames = window_frames(sample)
    places = [_off_border(start + 0.5 + number * step) for number in range(clip.frames)]
    if clip.short_video == "loop" and _last_start(sample, clip) < 0:
        places = [place % len(frames) for place in places]
    held = len(frames) - 1
    if uses_reference_frames(sample, clip):
        held -= (held - _phase(sample)) % sample.reference_stride
    period_s = sample.duration_s / sample.frames
    return [(frames.start + min(place, held + 0.5)) * period_s for place in places]


def _off_border(place: float) -> float:
    """Move a time near a border between two frames into the later one: there, rounded time stamps decide."""
    border = round(place)
    return border + _MARGIN if abs(place - border) < _MARGIN else place


def _segment_timestamps_s(sample: Sample, fractions: list[float]) -> list[float]:
    """Timestamps of one frame in each of equal segments, at the given fractions of the segments."""
    frames = window_frames(sample)
    segment = len(frames) / len(fractions)
    places = [int((number + fraction) * segment) for number, fraction in enumerate(fractions)]
    period_s = sample.duration_s / sample.frames
    return [(frames[min(place, len(frames) - 1)] + 0.5) * period_s for place in places]
