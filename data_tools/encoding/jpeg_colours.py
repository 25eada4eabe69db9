"""Conversion of 4:2:0 planes to the colours of JPEG files: BT.601 in full range.

swscale converts between matrices through 8-bit RGB and rounds down at each step: BT.709 comes out 1 to 3 grey
levels too dark. Here each value is computed at once and rounded to the nearest.
"""

from collections.abc import Sequence
from itertools import product

import numpy as np

from kinemae.data_tools.stream.yuv_planes import luma_weights
from kinemae.data_tools.stream.yuv_to_rgb import colour_coefficients

_SHIFT = 13  # as in `colour_coefficients`
_BLUE_SCALE, _RED_SCALE = 1.772, 1.402  # the colour differences of JPEG times these are B - Y and R - Y
_SAME = [0, 1 << _SHIFT]


def jpeg_planes(planes: Sequence[np.ndarray], matrix: int, *, is_full_range: bool) -> list[np.ndarray]:
    """Convert the planes of a picture with even sides.

    A grey pixel has no colour differences in any matrix, so the new differences depend on the old ones alone.

    Args:
        planes: luma and the two colour differences, uint8, the latter at half the size.
        matrix: FFmpeg's number of the colour space.
    """
    offset, gain, v_red, _, _, u_blue, u_luma, v_luma = colour_coefficients(
        *luma_weights(matrix), is_full_range=is_full_range
    )
    if [offset, gain] == _SAME and not (u_luma or v_luma):
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
