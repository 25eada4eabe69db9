"""Convert frames to upright 4:2:0 planes of one size with square pixels."""

from collections.abc import Sequence

import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter

from kinemae.data_tools.encoding.jpeg_colours import jpeg_planes
from kinemae.data_tools.encoding.source_decoder import OpenedSource
from kinemae.data_tools.stream.geometry import rotation, square_size

_SCALING = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.BITEXACT
_BT601 = 6  # AVCOL_SPC_SMPTE170M
_BLACK, _BLACK_FULL, _NO_COLOUR = 16, 0, 128
_UPRIGHT = (False, False, False)
_ROUNDED = 4  # pixels by which sizes of one aspect ratio may differ after rounding


class Converter:
    """Convert frames to upright 4:2:0 of one size; keep the colour space if the stored tags can describe it.

    The first frame decides the size. A later frame of another aspect ratio is fitted in, with black bars.

    Args:
        short_side: in pixels, rounded to even sizes; nothing is enlarged. None keeps the size.
        jpeg: convert to the colour space of JPEG files, which have no colour tags.
    """

    def __init__(self, original: OpenedSource, short_side: int | None, jpeg: bool):
        self._rotation, self._are_pictures, self._jpeg = original.rotation, original.is_image_sequence, jpeg
        self._first = original.first.width, original.first.height
        self._aspect, self._notes = original.pixel_aspect, original.notes
        shown = square_size(*self._first, self._aspect)
        size = even_size(*shown, short_side)
        self._size = size[::-1] if self._rotation.transpose else size  # upright
        self._reformatter = VideoReformatter()

    def picture(self, frame: VideoFrame) -> VideoFrame:
        """The frame as it will be encoded."""
        is_rgb = frame.format.is_rgb
        is_full = is_rgb or frame.color_range == ColorRange.JPEG or frame.format.name.startswith("yuvj")
        stored_full = is_full and (self._jpeg or not is_rgb)
        own_rotation = rotation(frame) if self._are_pictures else self._rotation
        size = self._fitted(frame, own_rotation.transpose)
        picture = self._reformatter.reformat(
            frame,
            width=size[own_rotation.transpose],
            height=size[not own_rotation.transpose],
            format="yuv420p",
            dst_colorspace=Colorspace.ITU601 if is_rgb else None,
            interpolation=_SCALING,
            src_color_range=ColorRange.JPEG if is_full else ColorRange.MPEG,
            dst_color_range=ColorRange.JPEG if stored_full else ColorRange.MPEG,
            threads=1,
        )
        if size != self._size:
            black = (_BLACK_FULL if stored_full else _BLACK, _NO_COLOUR, _NO_COLOUR)
            picture = _from_planes(_framed(_turned(picture, own_rotation), self._size, black), "yuv420p")
        elif picture is frame or any(own_rotation):  # a frame of the decoder's must not be changed
            picture = _from_planes(_turned(picture, own_rotation), "yuv420p")
        if self._jpeg:
            planes = _turned(picture, _UPRIGHT)
            matrix = _BT601 if is_rgb else int(frame.colorspace)
            picture = _from_planes(jpeg_planes(planes, matrix, is_full_range=stored_full), "yuvj420p")
        picture.color_range = ColorRange.JPEG if self._jpeg or stored_full else ColorRange.MPEG
        picture.colorspace = _BT601 if self._jpeg or is_rgb else frame.colorspace
        picture.color_primaries, picture.color_trc = frame.color_primaries, frame.color_trc
        return picture

    def _fitted(self, frame: VideoFrame, exchange: bool) -> tuple[int, int]:
        """Upright size at which the frame fits into the picture."""
        if (frame.width, frame.height) == self._first:
            return self._size
        shown = square_size(frame.width, frame.height, self._aspect)
        width, height = shown[::-1] if exchange else shown
        scale = min(self._size[0] / width, self._size[1] / height)
        size = max(round(width * scale / 2) * 2, 2), max(round(height * scale / 2) * 2, 2)
        note = f"the size changes on the way, to {width}x{height}"
        is_alike = max(abs(size[0] - self._size[0]), abs(size[1] - self._size[1])) <= _ROUNDED
        if not is_alike:
            note += ": fitted in with black bars"
        if not any(known.startswith(note) for known in self._notes):
            self._notes.append(note)
        return self._size if is_alike else size


def even_size(width: int, height: int, short_side: int | None) -> tuple[int, int]:
    """Both sides even, as 4:2:0 needs it, and the shorter one not above `short_side`."""
    scale = min(1.0, short_side / min(width, height)) if short_side else 1.0
    if scale == 1.0:
        return max(width // 2 * 2, 2), max(height // 2 * 2, 2)
    return max(round(width * scale / 2) * 2, 2), max(round(height * scale / 2) * 2, 2)


def _turned(picture: VideoFrame, own_rotation: tuple[bool, bool, bool]) -> list[np.ndarray]:
    """The planes of a 4:2:0 picture, upright."""
    exchange, flip_rows, flip_columns = own_rotation
    planes = []
    for plane in picture.planes:
        rows = np.frombuffer(memoryview(plane), np.uint8).reshape(plane.height, plane.line_size)
        pixels = rows[:, : plane.width]
        pixels = pixels.T if exchange else pixels
        pixels = pixels[::-1] if flip_rows else pixels
        planes.append(pixels[:, ::-1] if flip_columns else pixels)
    return planes


def _framed(planes: Sequence[np.ndarray], size: tuple[int, int], black: Sequence[int]) -> list[np.ndarray]:
    """Planes of a smaller picture in the middle of black ones."""
    framed = []
    top, left = ((size[1] - planes[0].shape[0]) // 4 * 2, (size[0] - planes[0].shape[1]) // 4 * 2)
    for plane, level in zip(planes, black, strict=True):
        by = planes[0].shape[0] // plane.shape[0]
        canvas = np.full((size[1] // by, size[0] // by), level, np.uint8)
        height, width = plane.shape
        canvas[top // by : top // by + height, left // by : left // by + width] = plane
        framed.append(canvas)
    return framed


def _from_planes(planes: Sequence[np.ndarray], format_name: str) -> VideoFrame:
    height, width = planes[0].shape
    stacked = np.concatenate([pixels.reshape(-1) for pixels in planes]).reshape(height * 3 // 2, width)
    return VideoFrame.from_ndarray(stacked, format=format_name)
