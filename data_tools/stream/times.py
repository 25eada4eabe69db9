"""Which instants of a video a clip shows: arithmetic on the index's numbers, no video needed.

A video of `frames` frames and `duration_s` seconds is taken as a grid of equal periods. A clip takes every
`stride`-th of them, and each instant lies in the middle of its period, so that no rounding of time stamps
picks a neighbour. Where the rate varies, the grid is time itself: the frame on screen at the instant.
"""

from dataclasses import dataclass
from typing import Literal

from data_tools.config import require


@dataclass(frozen=True, kw_only=True)
class ClipConfig:
    """What a clip is.

    Attributes:
        frames: frames in a clip.
        stride: the clip takes every stride-th frame of the video.
        size: height and width of a clip in pixels.
        short_video: what follows the end of a video shorter than a clip: "hold" repeats its last frame,
            "loop" starts it again.
    """

    frames: int = 16
    stride: int = 4
    size: int = 224
    short_video: Literal["hold", "loop"] = "hold"

    def __post_init__(self) -> None:
        require(self.frames > 0, "clip.frames", "be at least 1", self.frames)
        require(self.stride > 0, "clip.stride", "be at least 1", self.stride)
        require(self.size > 0, "clip.size", "be at least 1", self.size)
        require(self.short_video in ("hold", "loop"), "clip.short_video", "be hold or loop", self.short_video)

    @property
    def span(self) -> int:
        """Frames of the video from the clip's first to its last."""
        return (self.frames - 1) * self.stride + 1


def training_instants_s(
    frames: int, duration_s: float, clip: ClipConfig, *, start_share: float
) -> list[float]:
    """Instants of one clip, from a uniform draw in [0, 1) that picks among all starts that fit."""
    starts = max(frames - clip.span, 0) + 1
    return _instants_s(frames, duration_s, clip, start=int(start_share * starts))


def evaluation_instants_s(
    frames: int, duration_s: float, clip: ClipConfig, *, temporal_clips: int
) -> list[list[float]]:
    """Instants of clips spread evenly over the starts that fit; a single clip is the middle one."""
    room = max(frames - clip.span, 0)
    if temporal_clips == 1:
        return [_instants_s(frames, duration_s, clip, start=room // 2)]
    starts = [round(number * room / (temporal_clips - 1)) for number in range(temporal_clips)]
    return [_instants_s(frames, duration_s, clip, start=start) for start in starts]


def last_frame_s(frames: int, duration_s: float) -> float:
    """When the last frame comes on screen."""
    return duration_s * (frames - 1) / frames


def _instants_s(frames: int, duration_s: float, clip: ClipConfig, *, start: int) -> list[float]:
    period_s = duration_s / frames
    wanted = [start + number * clip.stride for number in range(clip.frames)]
    if clip.short_video == "loop":
        return [(frame % frames + 0.5) * period_s for frame in wanted]
    return [(min(frame, frames - 1) + 0.5) * period_s for frame in wanted]
