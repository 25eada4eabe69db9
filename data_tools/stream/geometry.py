"""Geometry of frames: display rotation, pixel aspect ratio, fitted sizes."""

from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
from av.filter import Graph
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

# PyAV lists all side data of a frame or none: it raises ValueError for an unknown type.
_UNKNOWN_TYPES = range(28, 48)
_MAX_ASPECT = 8  # larger ratios are errors in the file
_MIN_DEVIATION = 0.02  # smaller deviations from 1 come from rounded sizes, such as 224/225


class Rotation(NamedTuple):
    """Rotation and mirroring of a display matrix: transpose, then flip rows, then flip columns."""

    transpose: bool = False
    flip_rows: bool = False
    flip_columns: bool = False

    def apply(self, pixels_HWX: np.ndarray) -> np.ndarray:
        """Rotate an image; the result is a view."""
        pixels_HWX = pixels_HWX.swapaxes(0, 1) if self.transpose else pixels_HWX
        pixels_HWX = pixels_HWX[::-1] if self.flip_rows else pixels_HWX
        return pixels_HWX[:, ::-1] if self.flip_columns else pixels_HWX


def rotation(frame: VideoFrame) -> Rotation:
    """The rotation in a frame's display matrix."""
    try:
        matrix: Any = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:
        matrix = _without_unknown_side_data(frame).side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return Rotation()
    # A pixel (x, y) is shown at (a x + c y, b x + d y); angles are rounded to quarter turns.
    a, b, _, c, d = np.frombuffer(memoryview(matrix), np.int32)[:5].tolist()
    if abs(b) + abs(c) > abs(a) + abs(d):
        return Rotation(True, b < 0, c < 0)
    return Rotation(False, d < 0, a < 0)


def _without_unknown_side_data(frame: VideoFrame) -> VideoFrame:
    """The same frame without the side data that PyAV cannot list: spatial video views, EXIF."""
    graph = Graph()
    base = frame.time_base or Fraction(1, 1000)
    source = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=base)
    filters = [graph.add("sidedata", f"mode=delete:type={number}") for number in _UNKNOWN_TYPES]
    graph.link_nodes(source, *filters, graph.add("buffersink")).configure()
    graph.vpush(frame)
    return graph.vpull()


def pixel_aspect(stream: VideoStream) -> Fraction:
    """Width of a stored pixel divided by its height; 1 if neither container nor codec states it.

    The container's ratio has priority, as in FFmpeg. The codec's ratio is known after the first frame.
    """
    aspect = stream.sample_aspect_ratio or stream.codec_context.sample_aspect_ratio or Fraction(1)
    is_valid = Fraction(1, _MAX_ASPECT) <= aspect <= _MAX_ASPECT and abs(aspect - 1) >= _MIN_DEVIATION
    return Fraction(aspect) if is_valid else Fraction(1)


def square_size(width: int, height: int, aspect: Fraction) -> tuple[int, int]:
    """Width and height of an image with square pixels; the height stays."""
    return (width, height) if aspect == 1 else (max(round(width * aspect), 1), height)


def fitted_size(width: int, height: int, into: tuple[int, int]) -> tuple[int, int]:
    """The largest width and height of the same aspect ratio that fit into (width, height)."""
    scale = min(into[0] / width, into[1] / height)
    return max(min(round(width * scale), into[0]), 1), max(min(round(height * scale), into[1]), 1)
