"""Exact RGB frames of a video at given instants, and what a full decode finds out about it.

Colours are those of PyAV's rgb24 conversion (alpha is dropped, more than 8 bits are reduced, no tone
mapping); pixels are made square; frames are upright. A frame of another size than the first is fitted into
the first's with black borders. Training reads planes instead: see `planes.py`.
"""

from collections.abc import Sequence
from fractions import Fraction
from itertools import chain
from pathlib import Path

import av
import numpy as np
import torch
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from torch import Tensor

from kinemae.data_tools.index import VideoInfo
from kinemae.data_tools.stream.container import (
    OpenedVideo,
    ffmpeg_errors,
    nominal_frame_s,
    open_video,
)
from kinemae.data_tools.stream.frame_decoder import frames_at
from kinemae.data_tools.stream.geometry import fitted_size, pixel_aspect, rotation, square_size
from kinemae.data_tools.stream.picture_notes import FrameNotes
from kinemae.data_tools.stream.whole_frames import IntactFrames


def probe(source: bytes | Path, *, full: bool = True, notes: list[str] | None = None) -> VideoInfo:
    """Find out what a video is by decoding it.

    The last frame is taken to last as long as the average one, so frame i of a video with a constant
    rate is on screen around (i + 0.5) * duration_s / frames whatever the container says about its end.

    Args:
        source: the video itself, or its file.
        full: decode every frame; otherwise only the first, and believe the container about the rest.
        notes: gets a line for each anomaly that does not reject the video.

    Raises:
        BadVideo: it cannot be opened, holds no video stream, or is damaged. A video that merely ends
            earlier than its container says is taken for what can be decoded.
    """
    with open_video(source) as opened:
        pictures = FrameNotes(opened)
        if full:
            whole = IntactFrames(pictures.watched(chain([opened.first], opened.rest)), opened)
            last_s = max(map(opened.start_s, whole))
            frames = whole.count
            duration_s = last_s * frames / (frames - 1) if frames > 1 else nominal_frame_s(opened)
            missing = whole.missing()
        else:
            frames, duration_s = _claimed_length(opened)
            missing = []
            list(pictures.watched(iter([opened.first])))
        height, width = _shown_size(opened)
        codec = opened.stream.codec_context.name
    if notes is not None:
        notes.extend([*missing, *pictures.lines()])
    return VideoInfo(frames=frames, duration_s=duration_s, width=width, height=height, codec=codec)


def decode_at(video: bytes, timestamps_s: Sequence[float], *, last_frame_s: float | None = None) -> Tensor:
    """The frames on screen at the given instants.

    DecodeState starts at the key frame before the first instant and stops after the last; only the frames
    asked for are converted to RGB.

    Args:
        timestamps_s: seconds from the first frame shown, in any order, repeats allowed.
        last_frame_s: when the last frame comes on screen according to the index.

    Returns:
        frames_TCHW, uint8 RGB; a view of memory in (T, H, W, C) order.

    Raises:
        BadVideo: it cannot be read, or it ends before `last_frame_s`.
    """
    canvas: _Canvas | None = None
    with ffmpeg_errors():
        for frame, places, stream in frames_at(video, timestamps_s, last_frame_s=last_frame_s):
            canvas = canvas or _Canvas(frame, pixel_aspect(stream), len(timestamps_s))
            canvas.put(frame, places)
    assert canvas is not None
    return canvas.upright().permute(0, 3, 1, 2)


class _Canvas:
    """Where the picked frames go, one conversion and one copy each."""

    def __init__(self, first: VideoFrame, aspect: Fraction, frames: int):
        self._aspect = aspect
        self._size = square_size(first.width, first.height, aspect)
        width, height = self._size
        self._frames_THWC = torch.zeros((frames, height, width, 3), dtype=torch.uint8)
        self._pixels_THWC = self._frames_THWC.numpy()
        self._rotation = rotation(first)
        self._reformatter = VideoReformatter()

    def put(self, frame: VideoFrame, places: Sequence[int]) -> None:
        """Convert a frame and copy it to its places."""
        width, height = fitted_size(*square_size(frame.width, frame.height, self._aspect), self._size)
        # More than one thread here costs 40 microseconds a frame, twenty times the work at 48 x 48.
        rgb = self._reformatter.reformat(frame, width=width, height=height, format="rgb24", threads=1)
        plane = rgb.planes[0]  # rows may be padded
        rows = np.frombuffer(memoryview(plane), np.uint8)[: height * plane.line_size].reshape(height, -1)
        left, top = (self._size[0] - width) // 2, (self._size[1] - height) // 2
        pixels = rows[:, : width * 3].reshape(height, width, 3)
        self._pixels_THWC[places, top : top + height, left : left + width] = pixels

    def upright(self) -> Tensor:
        """The frames as they are shown."""
        exchange, flip_rows, flip_columns = self._rotation
        frames_THWC = self._frames_THWC.transpose(1, 2) if exchange else self._frames_THWC
        flipped = [dim for dim, flip in ((1, flip_rows), (2, flip_columns)) if flip]
        return frames_THWC.flip(flipped) if flipped else frames_THWC


def _claimed_length(opened: OpenedVideo) -> tuple[int, float]:
    """Frames and seconds as the container has them, at least one frame."""
    stream, frame_s = opened.stream, nominal_frame_s(opened)
    if stream.duration:
        duration_s = stream.duration * opened.tick_s
    else:
        duration_s = (opened.container.duration or 0) / av.time_base
    frames = stream.frames or max(round(duration_s / frame_s), 1)
    return frames, max(duration_s, frame_s)


def _shown_size(opened: OpenedVideo) -> tuple[int, int]:
    """Height and width as shown: upright, in square pixels."""
    first, aspect = opened.first, pixel_aspect(opened.stream)
    if rotation(first)[0]:
        width, height = square_size(first.height, first.width, 1 / aspect)
    else:
        width, height = square_size(first.width, first.height, aspect)
    return height, width
