"""Decoded frames as 8-bit planes, upright: what training cuts its clips from.

Frames of 8-bit 4:2:0, nearly all there are, are looked at where the decoder put them. Any other format goes
through FFmpeg's converter first, one frame at a time, and keeps its matrix and range; alpha is dropped. A
frame of another size than the first is fitted into the first's and gets black borders.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, VideoReformatter

from kinemae.data_tools.stream.container import ffmpeg_errors
from kinemae.data_tools.stream.frame_decoder import frames_at
from kinemae.data_tools.stream.geometry import fitted_size, pixel_aspect, rotation, square_size
from kinemae.data_tools.stream.yuv_to_rgb import colour_coefficients

_AS_IT_IS = ("yuv420p", "yuvj420p")
# Shares of red and blue by FFmpeg's number of the matrix; what is not named counts as BT.601, as with FFmpeg.
_BT601 = (0.299, 0.114)
_SHARES = {1: (0.2126, 0.0722), 4: (0.30, 0.11), 7: (0.212, 0.087), 9: (0.2627, 0.0593), 10: (0.2627, 0.0593)}


@dataclass(frozen=True, kw_only=True)
class YuvFrame:
    """One frame, upright.

    Attributes:
        planes: brightness and the two colour differences, uint8, the latter at half the size; or RGB alone,
            (height, width, 3). Valid until the next picture is asked for.
        colour: as `pixels.colour_coefficients`; None for RGB.
        aspect: width of a pixel divided by its height.
    """

    planes: tuple[np.ndarray, ...]
    colour: list[int] | None
    aspect: Fraction = Fraction(1)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width as shown, in square pixels."""
        height, width = self.planes[0].shape[:2]
        return height, square_size(width, height, self.aspect)[0]


def luma_weights(matrix: int) -> tuple[float, float]:
    """Shares of red and blue in the luma, by FFmpeg's number of the matrix."""
    return _SHARES.get(matrix, _BT601)


def yuv_frames_at(
    video: bytes, timestamps_s: Sequence[float], *, last_frame_s: float | None = None
) -> Iterator[tuple[YuvFrame, list[int]]]:
    """Each picture that is on screen at one of the instants, with the places of those instants in the list.

    An odd last row or column is left out, as two by two pixels share a colour.

    Args:
        timestamps_s, last_frame_s: see `frames_at`; as there, what is given last for a place counts.

    Raises:
        BadVideo: it cannot be read, or it ends before `last_frame_s`.
    """
    reader: _Reader | None = None
    with ffmpeg_errors():
        for frame, places, stream in frames_at(video, timestamps_s, last_frame_s=last_frame_s):
            reader = reader or _Reader(frame, pixel_aspect(stream))
            yield reader.picture(frame), places


class _Reader:
    """Frames of one video, all of the first one's size and colours."""

    def __init__(self, first: VideoFrame, aspect: Fraction):
        self._width, self._height = first.width, first.height
        self._is_full_range = first.color_range == ColorRange.JPEG
        self._colour = colour_coefficients(
            *luma_weights(int(first.colorspace)), is_full_range=self._is_full_range
        )
        self._rotation = rotation(first)
        self._aspect = 1 / aspect if self._rotation[0] else aspect
        even = max(self._height // 2 * 2, 1), max(self._width // 2 * 2, 1)
        half = (even[0] + 1) // 2, (even[1] + 1) // 2
        self._shapes = (even, half, half)
        self._black = (0 if self._is_full_range else 16, 128, 128)
        self._reformatter = VideoReformatter()

    def picture(self, frame: VideoFrame) -> YuvFrame:
        """The frame's planes; they live as long as the picture."""
        if (frame.width, frame.height) != (self._width, self._height):
            stored = self._bordered(frame)
        elif frame.format.name in _AS_IT_IS:
            stored = _pixels(frame, self._shapes)
        else:
            stored = _pixels(self._reformatted(frame, self._width, self._height), self._shapes)
        planes = [self._upright(pixels) for pixels in stored] if any(self._rotation) else stored
        return YuvFrame(planes=tuple(planes), colour=self._colour, aspect=self._aspect)

    def _bordered(self, frame: VideoFrame) -> list[np.ndarray]:
        """The planes of a frame of another size, fitted into those of the first frame."""
        room = max(self._width // 2 * 2, 1), max(self._height // 2 * 2, 1)
        width, height = (max(side // 2 * 2, 1) for side in fitted_size(frame.width, frame.height, room))
        half = (height + 1) // 2, (width + 1) // 2
        parts = _pixels(self._reformatted(frame, width, height), [(height, width), half, half])
        top, left = (
            (room[1] - height) // 4,
            (room[0] - width) // 4,
        )  # pairs share a colour
        planes = []
        for shape, part, black, scale in zip(self._shapes, parts, self._black, (2, 1, 1), strict=True):
            plane = np.full(shape, black, np.uint8)
            plane[top * scale :, left * scale :][: part.shape[0], : part.shape[1]] = part
            planes.append(plane)
        return planes

    def _reformatted(self, frame: VideoFrame, width: int, height: int) -> VideoFrame:
        extent = ColorRange.JPEG if self._is_full_range else ColorRange.MPEG
        return self._reformatter.reformat(
            frame,
            width=width,
            height=height,
            format="yuv420p",
            src_color_range=extent,
            dst_color_range=extent,
            threads=1,
        )

    def _upright(self, pixels: np.ndarray) -> np.ndarray:
        exchange, flip_rows, flip_columns = self._rotation
        pixels = pixels.T if exchange else pixels
        pixels = pixels[::-1] if flip_rows else pixels
        pixels = pixels[:, ::-1] if flip_columns else pixels
        return np.ascontiguousarray(pixels)  # OpenCV takes no other strides


def _pixels(frame: VideoFrame, shapes: Sequence[tuple[int, int]]) -> list[np.ndarray]:
    """The planes of a frame where they lie, without padding."""
    return [
        np.ndarray(shape, np.uint8, memoryview(plane), strides=(plane.line_size, 1))
        for plane, shape in zip(frame.planes, shapes, strict=True)
    ]
