"""Convert frames to upright 4:2:0 planes of one size with square pixels."""

from collections.abc import Sequence
from itertools import product

import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter

from kinemae.data_tools.encoding.source_decoder import OpenedSource
from kinemae.data_tools.stream.geometry import Rotation, rotation, square_size
from kinemae.data_tools.stream.yuv_planes import luma_weights
from kinemae.data_tools.stream.yuv_to_rgb import colour_coefficients

_SCALING = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.BITEXACT
_BT601 = 6  # AVCOL_SPC_SMPTE170M
_BLACK, _BLACK_FULL, _GREY = 16, 0, 128
_ROUNDING = 4  # pixels by which sizes of one aspect ratio may differ after rounding
_SHIFT = 13  # as in `colour_coefficients`
_BLUE_SCALE, _RED_SCALE = 1.772, 1.402  # JPEG's chroma times these is B - Y and R - Y


class Converter:
    """Convert frames to upright 4:2:0 of one size; keep the colour space if the stored tags can describe it.

    The first frame decides the size. A later frame of another aspect ratio is fitted in, with black bars.

    Args:
        short_side: in pixels, rounded to even sizes; nothing is enlarged. None keeps the size.
        jpeg: convert to the colour space of JPEG files, which have no colour tags.
    """

    def __init__(self, source: OpenedSource, short_side: int | None, jpeg: bool):
        self._rotation, self._is_image_sequence = source.rotation, source.is_image_sequence
        self._jpeg = jpeg
        self._first = source.first.width, source.first.height
        self._aspect, self._notes = source.pixel_aspect, source.notes
        shown = square_size(*self._first, self._aspect)
        size = even_size(*shown, short_side)
        self._size = size[::-1] if self._rotation.transpose else size  # upright
        self._reformatter = VideoReformatter()

    def convert(self, frame: VideoFrame) -> VideoFrame:
        """Convert a frame for the encoder."""
        is_rgb = frame.format.is_rgb
        is_full = is_rgb or frame.color_range == ColorRange.JPEG or frame.format.name.startswith("yuvj")
        stored_full = is_full and (self._jpeg or not is_rgb)
        turn = rotation(frame) if self._is_image_sequence else self._rotation
        size = self._fitted(frame, turn.transpose)
        picture = self._reformatter.reformat(
            frame,
            width=size[turn.transpose],
            height=size[not turn.transpose],
            format="yuv420p",
            dst_colorspace=Colorspace.ITU601 if is_rgb else None,
            interpolation=_SCALING,
            src_color_range=ColorRange.JPEG if is_full else ColorRange.MPEG,
            dst_color_range=ColorRange.JPEG if stored_full else ColorRange.MPEG,
            threads=1,
        )
        if size != self._size:
            black = (_BLACK_FULL if stored_full else _BLACK, _GREY, _GREY)
            picture = _from_planes(_with_bars(_upright(picture, turn), self._size, black), "yuv420p")
        elif picture is frame or any(turn):  # the decoder's own frame must not be changed
            picture = _from_planes(_upright(picture, turn), "yuv420p")
        if self._jpeg:
            planes = _upright(picture, Rotation())
            matrix = _BT601 if is_rgb else int(frame.colorspace)
            picture = _from_planes(jpeg_planes(planes, matrix, is_full_range=stored_full), "yuvj420p")
        picture.color_range = ColorRange.JPEG if self._jpeg or stored_full else ColorRange.MPEG
        picture.colorspace = _BT601 if self._jpeg or is_rgb else frame.colorspace
        picture.color_primaries, picture.color_trc = frame.color_primaries, frame.color_trc
        return picture

    def _fitted(self, frame: VideoFrame, transpose: bool) -> tuple[int, int]:
        """Upright size at which the frame fits into the picture."""
        if (frame.width, frame.height) == self._first:
            return self._size
        shown = square_size(frame.width, frame.height, self._aspect)
        width, height = shown[::-1] if transpose else shown
        scale = min(self._size[0] / width, self._size[1] / height)
        size = max(round(width * scale / 2) * 2, 2), max(round(height * scale / 2) * 2, 2)
        note = f"the size changes within the video, to {width}x{height}"
        is_alike = max(abs(size[0] - self._size[0]), abs(size[1] - self._size[1])) <= _ROUNDING
        if not is_alike:
            note += ": fitted in with black bars"
        if not any(known.startswith(note) for known in self._notes):
            self._notes.append(note)
        return self._size if is_alike else size


def even_size(width: int, height: int, short_side: int | None) -> tuple[int, int]:
    """An even size, as 4:2:0 requires, whose shorter side is at most `short_side`."""
    scale = min(1.0, short_side / min(width, height)) if short_side else 1.0
    if scale == 1.0:
        return max(width // 2 * 2, 2), max(height // 2 * 2, 2)
    return max(round(width * scale / 2) * 2, 2), max(round(height * scale / 2) * 2, 2)


def jpeg_planes(planes: Sequence[np.ndarray], matrix: int, *, is_full_range: bool) -> list[np.ndarray]:
    """Convert the planes of a 4:2:0 picture with even sides to the colours of JPEG: BT.601 in full range.

    swscale converts between matrices through 8-bit RGB and rounds down at each step, so BT.709 becomes 1 to
    3 levels too dark. Here each value is computed at once and rounded to the nearest. A grey pixel has no
    chroma in any matrix, so the new chroma depends on the old chroma alone.

    Args:
        matrix: FFmpeg's number of the matrix.
    """
    offset, gain, v_red, _, _, u_blue, u_luma, v_luma = colour_coefficients(
        *luma_weights(matrix), is_full_range=is_full_range
    )
    if [offset, gain] == [0, 1 << _SHIFT] and not (u_luma or v_luma):
        return list(planes)
    levels = np.arange(256, dtype=np.int32)
    half, grey = 1 << (_SHIFT - 1), 128 << _SHIFT
    u, v = (plane.astype(np.int32) - 128 for plane in planes[1:])
    in_luma = u * u_luma + v * v_luma
    luma = ((levels - offset) * gain)[planes[0]]
    for row, column in product((0, 1), repeat=2):
        luma[row::2, column::2] += in_luma
    blue = u * round((u_blue - u_luma) / _BLUE_SCALE) - v * round(v_luma / _BLUE_SCALE)
    red = v * round((v_red - v_luma) / _RED_SCALE) - u * round(u_luma / _RED_SCALE)
    return [_rounded(luma, half), _rounded(blue, half + grey), _rounded(red, half + grey)]


def _rounded(sum_HW: np.ndarray, offset: int) -> np.ndarray:
    sum_HW += offset
    sum_HW >>= _SHIFT
    return np.clip(sum_HW, 0, 255, out=sum_HW).astype(np.uint8)


def _upright(picture: VideoFrame, turn: Rotation) -> list[np.ndarray]:
    """The planes of a 4:2:0 picture, rotated upright."""
    planes = []
    for plane in picture.planes:
        rows = np.frombuffer(memoryview(plane), np.uint8).reshape(plane.height, plane.line_size)
        planes.append(turn.apply(rows[:, : plane.width]))
    return planes


def _with_bars(planes: Sequence[np.ndarray], size: tuple[int, int], black: Sequence[int]) -> list[np.ndarray]:
    """Put the planes of a smaller picture in the middle of black planes."""
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
