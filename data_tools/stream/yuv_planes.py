"""Decode frames to upright 8-bit YUV planes, from which clips are cut.

Frames in 8-bit 4:2:0, the usual format, are used in the decoder's memory. Frames of other formats are
converted by FFmpeg one at a time and keep their matrix and range; alpha is dropped. A frame of another size
than the first is fitted into the first's with black borders.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TypeVar

import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, VideoReformatter
from av.video.stream import VideoStream

from kinemae.data_tools.stream.container import ffmpeg_errors
from kinemae.data_tools.stream.frame_decoder import frames_at, frames_in_sequence
from kinemae.data_tools.stream.geometry import fitted_size, pixel_aspect, rotation, square_size
from kinemae.data_tools.stream.yuv_to_rgb import colour_coefficients

Places = TypeVar("Places", bound=Sequence[int])

_DIRECT_FORMATS = ("yuv420p", "yuvj420p")
# Luma weights of red and blue (Kr, Kb) by FFmpeg's number of the matrix; BT.601 is the default, as in FFmpeg.
_BT601 = (0.299, 0.114)
_WEIGHTS = {
    1: (0.2126, 0.0722),
    4: (0.30, 0.11),
    7: (0.212, 0.087),
    9: (0.2627, 0.0593),
    10: (0.2627, 0.0593),
}


@dataclass(frozen=True, kw_only=True)
class YuvFrame:
    """An upright frame.

    Attributes:
        planes: luma and the two chroma planes, uint8, chroma at half the size. Valid until the next frame.
        colour: see `yuv_to_rgb.colour_coefficients`.
        aspect: width of a pixel divided by its height.
    """

    planes: tuple[np.ndarray, ...]
    colour: list[int]
    aspect: Fraction = Fraction(1)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width on screen, in square pixels."""
        height, width = self.planes[0].shape
        return height, square_size(width, height, self.aspect)[0]


def luma_weights(matrix: int) -> tuple[float, float]:
    """Luma weights of red and blue, by FFmpeg's number of the matrix."""
    return _WEIGHTS.get(matrix, _BT601)


def yuv_frames_at(
    video: bytes | Path, timestamps_s: Sequence[float], *, last_frame_s: float | None = None
) -> Iterator[tuple[YuvFrame, list[int]]]:
    """Decode each frame that is on screen at a timestamp, with the positions of those timestamps.

    An odd last row or column is dropped, as chroma has half the size.

    Args:
        timestamps_s, last_frame_s: see `frames_at`; as there, the last frame of a position counts.

    Raises:
        BadVideo: the video cannot be read, or it ends before `last_frame_s`.
    """
    return yuv_frames(frames_at(video, timestamps_s, last_frame_s=last_frame_s))


def yuv_frames_in_sequence(
    video: bytes | Path, ascending_s: Sequence[float], *, last_frame_s: float | None = None
) -> Iterator[tuple[YuvFrame, Sequence[int]]]:
    """Decode a video once from its beginning; see `frames_in_sequence` and `yuv_frames_at`."""
    return yuv_frames(frames_in_sequence(video, ascending_s, last_frame_s=last_frame_s))


def yuv_frames(
    decoded: Iterable[tuple[VideoFrame, Places, VideoStream]],
) -> Iterator[tuple[YuvFrame, Places]]:
    """Convert decoded frames, each with its positions and its stream; see `yuv_frames_at`."""
    converter: _Converter | None = None
    with ffmpeg_errors():
        for frame, places, stream in decoded:
            converter = converter or _Converter(frame, pixel_aspect(stream))
            yield converter.convert(frame), places


class _Converter:
    """Converts the frames of a video to the size and colours of its first frame."""

    def __init__(self, first: VideoFrame, aspect: Fraction):
        self._size = first.width, first.height
        self._is_full_range = first.color_range == ColorRange.JPEG
        weights = luma_weights(int(first.colorspace))
        self._colour = colour_coefficients(*weights, is_full_range=self._is_full_range)
        self._rotation = rotation(first)
        self._aspect = 1 / aspect if self._rotation.transpose else aspect
        self._even_size = max(first.width // 2 * 2, 1), max(first.height // 2 * 2, 1)
        self._shapes = _plane_shapes(*self._even_size)
        self._black = (0 if self._is_full_range else 16, 128, 128)
        self._reformatter = VideoReformatter()

    def convert(self, frame: VideoFrame) -> YuvFrame:
        """The frame's planes; valid as long as the frame exists."""
        if (frame.width, frame.height) != self._size:
            planes = self._with_borders(frame)
        elif frame.format.name in _DIRECT_FORMATS:
            planes = _planes(frame, self._shapes)
        else:
            planes = _planes(self._reformatted(frame, *self._size), self._shapes)
        if any(self._rotation):  # OpenCV needs contiguous memory
            planes = [np.ascontiguousarray(self._rotation.apply(plane)) for plane in planes]
        return YuvFrame(planes=tuple(planes), colour=self._colour, aspect=self._aspect)

    def _with_borders(self, frame: VideoFrame) -> list[np.ndarray]:
        """The planes of a frame of another size, fitted into those of the first frame."""
        fitted = fitted_size(frame.width, frame.height, self._even_size)
        width, height = (max(side // 2 * 2, 1) for side in fitted)
        parts = _planes(self._reformatted(frame, width, height), _plane_shapes(width, height))
        # In units of two pixels, which share their chroma.
        top, left = (self._even_size[1] - height) // 4, (self._even_size[0] - width) // 4
        planes = []
        for shape, part, black, scale in zip(self._shapes, parts, self._black, (2, 1, 1), strict=True):
            plane = np.full(shape, black, np.uint8)
            plane[top * scale :, left * scale :][: part.shape[0], : part.shape[1]] = part
            planes.append(plane)
        return planes

    def _reformatted(self, frame: VideoFrame, width: int, height: int) -> VideoFrame:
        color_range = ColorRange.JPEG if self._is_full_range else ColorRange.MPEG
        return self._reformatter.reformat(
            frame,
            width=width,
            height=height,
            format="yuv420p",
            src_color_range=color_range,
            dst_color_range=color_range,
            threads=1,
        )


def _plane_shapes(width: int, height: int) -> list[tuple[int, int]]:
    half = (height + 1) // 2, (width + 1) // 2
    return [(height, width), half, half]


def _planes(frame: VideoFrame, shapes: Sequence[tuple[int, int]]) -> list[np.ndarray]:
    """Views of the planes of a frame, without padding."""
    return [
        np.ndarray(shape, np.uint8, memoryview(plane), strides=(plane.line_size, 1))
        for plane, shape in zip(frame.planes, shapes, strict=True)
    ]
