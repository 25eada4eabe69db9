"""Which instants of a video a clip shows: arithmetic on the index's numbers, no video needed.

A video of `frames` frames and `duration_s` seconds is taken as a grid of equal periods. A clip begins in the
middle of one, so that no rounding of time stamps picks a neighbour. Where the rate varies, the grid is time
itself: the frame on screen at the instant.

In a video whose every S-th frame can be decoded without the ones between (`Sample.reference_stride`), a clip
whose step is a multiple of S begins on one of those frames and so never needs another.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from kinemae.data_tools.config import require
from kinemae.data_tools.index import Sample

_STRIDE = 4
_MOST_DRIFT = 0.25  # of a frame's period, over a whole clip; half a period would reach the next frame
_MARGIN = 0.05  # of a period; milliseconds, the coarsest time stamps in use, are off by 0.03 at 60 fps


@dataclass(frozen=True, kw_only=True)
class ClipConfig:
    """What a clip is.

    Attributes:
        frames: frames in a clip.
        stride: the clip takes every stride-th frame of the video.
        fps: in place of stride: frames of the clip in a second, whatever the rate of the video.
        sampling: "dense" takes frames `stride` or 1 / `fps` apart; "uniform" cuts the video into `frames`
            equal segments and takes one frame of each.
        size: height and width of a clip in pixels.
        short_video: what follows the end of a video shorter than a dense clip: "hold" repeats its last frame,
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
            unset = f"be left out where clip.fps={self.fps:g} says how far apart the frames are"
            require(self.stride == _STRIDE, "clip.stride", unset, self.stride)
        if self.sampling == "uniform":
            unset = "be left out where clip.sampling=uniform spreads the frames over the whole video"
            require(self.stride == _STRIDE, "clip.stride", unset, self.stride)
            require(self.fps is None, "clip.fps", unset, self.fps)


def training_timestamps_s(sample: Sample, clip: ClipConfig, generator: torch.Generator) -> list[float]:
    """Instants of one clip: any start that fits, or any moment of each segment, equally likely."""
    if clip.sampling == "uniform":
        draws = torch.rand(clip.frames, generator=generator, dtype=torch.float64)
        return _segment_timestamps_s(sample, draws.tolist())
    starts = _starts(sample, clip)
    share = torch.rand((), generator=generator, dtype=torch.float64).item()
    return _timestamps_s(sample, clip, start=starts[int(share * len(starts))])


def evaluation_timestamps_s(sample: Sample, clip: ClipConfig, *, temporal_clips: int) -> list[list[float]]:
    """Instants of clips spread evenly over the starts that fit, or over each segment; one: the middle."""
    if clip.sampling == "uniform":
        shares = [(number + 0.5) / temporal_clips for number in range(temporal_clips)]
        return [_segment_timestamps_s(sample, [share] * clip.frames) for share in shares]
    starts = _starts(sample, clip)
    last = len(starts) - 1
    chosen = [last // 2]
    if temporal_clips > 1:
        chosen = [round(number * last / (temporal_clips - 1)) for number in range(temporal_clips)]
    return [_timestamps_s(sample, clip, start=starts[place]) for place in chosen]


def uses_reference_frames(sample: Sample, clip: ClipConfig) -> bool:
    """Whether the clips of this video show none but frames that decode without the ones between."""
    stride, phase = sample.reference_stride, sample.reference_phase
    if stride <= 1 or clip.sampling == "uniform" or _step(sample, clip) % stride:
        return False
    room = _room(sample, clip)
    if room >= 0:
        return room >= phase
    # Played again from its first frame, a video that is no whole number of strides loses the beat.
    return phase < sample.frames and (clip.short_video == "hold" or sample.frames % stride == 0)


def last_frame_s(frames: int, duration_s: float) -> float:
    """When the last frame comes on screen."""
    return duration_s * (frames - 1) / frames


def _step(sample: Sample, clip: ClipConfig) -> float:
    """Frames of the video from one frame of the clip to the next, whole where that shows the same frames."""
    if clip.fps is None:
        return clip.stride
    step = sample.frames / sample.duration_s / clip.fps
    drift = abs(step - round(step)) * (clip.frames - 1)
    return round(step) if drift <= _MOST_DRIFT else step


def _room(sample: Sample, clip: ClipConfig) -> int:
    """The last frame at which a clip may begin and still end inside the video; below 0 if there is none."""
    return math.ceil(sample.frames - 0.5 - (clip.frames - 1) * _step(sample, clip)) - 1


def _starts(sample: Sample, clip: ClipConfig) -> range:
    """The frames at which a clip may begin: where it can stay on reference frames, those alone."""
    room = _room(sample, clip)
    if uses_reference_frames(sample, clip):
        first = sample.reference_phase
        return range(first, max(room, first) + 1, sample.reference_stride)
    return range(max(room, 0) + 1)


def _timestamps_s(sample: Sample, clip: ClipConfig, *, start: int) -> list[float]:
    step = _step(sample, clip)
    places = [_off_border(start + 0.5 + number * step) for number in range(clip.frames)]
    if clip.short_video == "loop" and _room(sample, clip) < 0:
        places = [place % sample.frames for place in places]
    held = sample.frames - 1
    if uses_reference_frames(sample, clip):
        held -= (held - sample.reference_phase) % sample.reference_stride
    period_s = sample.duration_s / sample.frames
    return [min(place, held + 0.5) * period_s for place in places]


def _off_border(place: float) -> float:
    """A place between two frames goes into the later one: at a border the rounding of time stamps decides."""
    border = round(place)
    return border + _MARGIN if abs(place - border) < _MARGIN else place


def _segment_timestamps_s(sample: Sample, shares: list[float]) -> list[float]:
    """Cut the video into equal segments, go a share into each, and take the middle of the frame there."""
    segment = sample.frames / len(shares)
    places = [int((number + share) * segment) for number, share in enumerate(shares)]
    period_s = sample.duration_s / sample.frames
    return [(min(place, sample.frames - 1) + 0.5) * period_s for place in places]
