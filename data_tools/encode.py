"""Frames to H.264 files. The only writer of videos, and beside the decoder the only file that knows PyAV."""

import os
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
from torch import Tensor

from data_tools.config import require


@dataclass(frozen=True, kw_only=True)
class EncodeConfig:
    """How videos are encoded.

    Attributes:
        fps: frames per second.
        crf: x264's constant quality, 0 (lossless) to 51.
        key_frame_every: frames from one key frame to the next.
    """

    fps: int = 8
    crf: int = 18
    key_frame_every: int = 12

    def __post_init__(self) -> None:
        require(self.fps >= 1, "encode.fps", "be at least 1", self.fps)
        require(0 <= self.crf <= 51, "encode.crf", "lie in [0, 51]", self.crf)
        require(self.key_frame_every >= 1, "encode.key_frame_every", "be at least 1", self.key_frame_every)


def write_video(path: Path, frames_THWC: Tensor, settings: EncodeConfig) -> None:
    """Write frames as an H.264 mp4 (yuv420p, no sound); equal frames give equal bytes.

    Args:
        path: the file; it appears under this name only when it is complete.
        frames_THWC: uint8 RGB with an even height and width.

    Raises:
        ValueError: the height or width is odd, which yuv420p cannot hold.
    """
    _, height, width, _ = frames_THWC.shape
    if height % 2 or width % 2:
        raise ValueError(
            f"a video of {height}x{width} pixels cannot be encoded as yuv420p: both sides must be even"
        )
    partial = path.with_name(f"{path.name}.partial")
    # `bitexact` leaves out the library's version and the date; one thread keeps x264 deterministic.
    with av.open(str(partial), "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("libx264", rate=Fraction(settings.fps))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.gop_size = settings.key_frame_every
        stream.thread_count = 1
        stream.options = {
            "crf": str(settings.crf),
            "preset": "veryfast",
            "bf": "0",
            "flags": "+bitexact",
            # With it x264 gave other bytes for equal small frames, about once in a hundred videos.
            "x264-params": "mbtree=0",
        }
        for frame_HWC in frames_THWC.numpy():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame_HWC, format="rgb24")))
        container.mux(stream.encode())
    os.replace(partial, path)
