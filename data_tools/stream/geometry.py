"""Shapes of pictures: rotation, mirroring, and pixels that are not square."""

from fractions import Fraction
from typing import Any

import numpy as np
from av.filter import Graph
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

# PyAV lists all side data of a frame or none: one of a type that it does not know makes it raise ValueError.
_UNKNOWN_TYPES = range(28, 48)
_MOST_ASPECT = 8  # larger ratios are errors in the file
_LEAST_ASPECT = 0.02  # smaller deviations come from rounded sizes, such as 224/225


def rotation(frame: VideoFrame) -> tuple[bool, bool, bool]:
    """(exchange rows and columns, then flip rows, then flip columns) that the display matrix asks for."""
    try:
        matrix: Any = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:
        matrix = _without_unknown_side_data(frame).side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return False, False, False
    # A pixel (x, y) is shown at (a x + c y, b x + d y); angles are rounded to quarter rotation.
    a, b, _, c, d = np.frombuffer(memoryview(matrix), np.int32)[:5].tolist()
    if abs(b) + abs(c) > abs(a) + abs(d):
        return True, b < 0, c < 0
    return False, d < 0, a < 0


def _without_unknown_side_data(frame: VideoFrame) -> VideoFrame:
    """The same picture without the side data that PyAV cannot list: spatial video views, EXIF."""
    graph = Graph()
    base = frame.time_base or Fraction(1, 1000)
    source = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=base)
    filters = [graph.add("sidedata", f"mode=delete:type={number}") for number in _UNKNOWN_TYPES]
    graph.link_nodes(source, *filters, graph.add("buffersink")).configure()
    graph.vpush(frame)
    return graph.vpull()


def pixel_aspect(stream: VideoStream) -> Fraction:
    """Width of a stored pixel divided by its height; 1 where neither container nor codec says otherwise.

    The container's ratio counts before the codec's, as in FFmpeg. After the first frame is decoded, the
    codec's is known as well.
    """
    aspect = stream.sample_aspect_ratio or stream.codec_context.sample_aspect_ratio
    if (
        not aspect
        or abs(aspect - 1) < _LEAST_ASPECT
        or not Fraction(1, _MOST_ASPECT) <= aspect <= _MOST_ASPECT
    ):
        return Fraction(1)
    return Fraction(aspect)


def square_size(width: int, height: int, aspect: Fraction) -> tuple[int, int]:
    """Width and height of a picture with square pixels; the height stays."""
    return (width, height) if aspect == 1 else (max(round(width * aspect), 1), height)


def fitted_size(width: int, height: int, into: tuple[int, int]) -> tuple[int, int]:
    """The largest width and height of the same aspect that fit into a frame of (width, height)."""
    scale = min(into[0] / width, into[1] / height)
    return max(min(round(width * scale), into[0]), 1), max(min(round(height * scale), into[1]), 1)
