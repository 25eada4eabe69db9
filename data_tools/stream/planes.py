"""Decoded frames as 8-bit planes, upright: what training cuts its clips from.

Frames of 8-bit 4:2:0, nearly all there are, are looked at where the decoder put them. Any other format goes
through FFmpeg's converter first, one frame at a time, and keeps its matrix and range; alpha is dropped.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, VideoReformatter

from data_tools.stream.container import ffmpeg_errors
from data_tools.stream.geometry import turns
from data_tools.stream.picking import picked_frames
from data_tools.stream.pixels import colour_numbers

_AS_IT_IS = ("yuv420p", "yuvj420p")
# Shares of red and blue by FFmpeg's number of the matrix; what is not named counts as BT.601, as with FFmpeg.
_BT601 = (0.299, 0.114)
_SHARES = {1: (0.2126, 0.0722), 4: (0.30, 0.11), 7: (0.212, 0.087), 9: (0.2627, 0.0593), 10: (0.2627, 0.0593)}


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One frame, upright.

    Attributes:
        planes: brightness and the two colour differences, uint8, the latter at half the size; or RGB alone,
            (height, width, 3). Valid until the next picture is asked for.
        colour: as `pixels.colour_numbers`; None for RGB.
    """

    planes: tuple[np.ndarray, ...]
    colour: list[int] | None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        height, width = self.planes[0].shape[:2]
        return height, width


def pictures_at(
    video: bytes, instants_s: Sequence[float], *, last_frame_s: float | None = None
) -> Iterator[tuple[Picture, list[int]]]:
    """Each picture that is on screen at one of the instants, with the places of those instants in the list.

    An odd last row or column is left out, as two by two pixels share a colour.

    Args:
        instants_s, last_frame_s: see `picked_frames`; as there, what is given last for a place counts.

    Raises:
        BadVideo: it cannot be read, or it ends before `last_frame_s`.
    """
    reader: _Reader | None = None
    with ffmpeg_errors():
        for frame, places in picked_frames(video, instants_s, last_frame_s=last_frame_s):
            reader = reader or _Reader(frame)
            yield reader.picture(frame), places


class _Reader:
    """Frames of one video, all of the first one's size and colours."""

    def __init__(self, first: VideoFrame):
        self._width, self._height = first.width, first.height
        self._is_full_range = first.color_range == ColorRange.JPEG
        shares = _SHARES.get(int(first.colorspace), _BT601)
        self._colour = colour_numbers(*shares, is_full_range=self._is_full_range)
        self._turns = turns(first)
        even = max(self._height // 2 * 2, 1), max(self._width // 2 * 2, 1)
        half = (even[0] + 1) // 2, (even[1] + 1) // 2
        self._shapes = (even, half, half)
        self._reformatter = VideoReformatter()

    def picture(self, frame: VideoFrame) -> Picture:
        """The frame's planes; they live as long as the picture."""
        if frame.format.name not in _AS_IT_IS or (frame.width, frame.height) != (self._width, self._height):
            frame = self._reformatted(frame)
        planes: list[np.ndarray] = []
        for plane, shape in zip(frame.planes, self._shapes, strict=True):
            pixels = np.ndarray(shape, np.uint8, memoryview(plane), strides=(plane.line_size, 1))
            planes.append(self._upright(pixels) if any(self._turns) else pixels)
        return Picture(planes=tuple(planes), colour=self._colour)

    def _reformatted(self, frame: VideoFrame) -> VideoFrame:
        extent = ColorRange.JPEG if self._is_full_range else ColorRange.MPEG
        return self._reformatter.reformat(
            frame,
            width=self._width,
            height=self._height,
            format="yuv420p",
            src_color_range=extent,
            dst_color_range=extent,
            threads=1,
        )

    def _upright(self, pixels: np.ndarray) -> np.ndarray:
        exchange, flip_rows, flip_columns = self._turns
        pixels = pixels.T if exchange else pixels
        pixels = pixels[::-1] if flip_rows else pixels
        pixels = pixels[:, ::-1] if flip_columns else pixels
        return np.ascontiguousarray(pixels)  # OpenCV takes no other strides
