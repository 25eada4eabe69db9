"""Pixels of clips: uint8 YUV planes, converted to RGB on the device of the model.

Planes have half the bytes of RGB, and the conversion costs a GPU nothing. It uses integer arithmetic, so
every device gives the same bits. A chroma value covers two by two pixels and is repeated, as in FFmpeg's fast
conversion.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from typing import Any

import torch
from torch import Tensor

_SHIFT = 13  # coefficients are in 8192ths; sums stay below 2 ** 23
# Pixels converted at once: on the CPU a part that fits its caches, elsewhere a limit of 150 MB.
_PIXELS_ON_CPU, _PIXELS_AT_ONCE = 1 << 18, 1 << 23
COLOUR_COEFFICIENTS = 8
# Weights of red, green and blue in the luma of ITU-R BT.601, in 8192ths. Their sum is 8192.
_RED, _GREEN, _BLUE = 2449, 4809, 934


@dataclass(frozen=True, kw_only=True)
class YuvClips:
    """B clips as planes.

    Attributes:
        luma_BTHW: uint8 luma as stored, of any range and matrix; `to_luma` gives full-range BT.601.
        chroma_BCTHW: uint8, both chroma planes at half the height and width, rounded up.
        colour_BX: int32, see `colour_coefficients`; zeros make a clip black.
    """

    luma_BTHW: Tensor
    chroma_BCTHW: Tensor
    colour_BX: Tensor

    @classmethod
    def empty(cls, clips: int, frames: int, size: int) -> "YuvClips":
        """Allocate black clips."""
        half = (size + 1) // 2
        return cls(
            luma_BTHW=torch.zeros((clips, frames, size, size), dtype=torch.uint8),
            chroma_BCTHW=torch.zeros((clips, 2, frames, half, half), dtype=torch.uint8),
            colour_BX=torch.zeros((clips, COLOUR_COEFFICIENTS), dtype=torch.int32),
        )

    def map(self, function: Callable[[Tensor], Tensor]) -> "YuvClips":
        """Apply a function to every tensor."""
        return YuvClips(
            luma_BTHW=function(self.luma_BTHW),
            chroma_BCTHW=function(self.chroma_BCTHW),
            colour_BX=function(self.colour_BX),
        )

    def __len__(self) -> int:
        return len(self.luma_BTHW)

    def __getitem__(self, rows: slice) -> "YuvClips":
        return self.map(lambda tensor: tensor[rows])

    def rgb(self) -> Tensor:
        """Convert to clip_BCTHW, uint8 RGB, on the same device."""
        clips, frames, height, width = self.luma_BTHW.shape
        clip_BCTHW = self.luma_BTHW.new_empty((clips, 3, frames, height, width))
        on_cpu = self.luma_BTHW.device.type == "cpu"
        at_once = (_PIXELS_ON_CPU if on_cpu else _PIXELS_AT_ONCE) // (height * width)  # frames
        step_t = max(min(at_once, frames), 1)
        step_b = max(at_once // frames, 1)
        for b, t in product(range(0, clips, step_b), range(0, frames, step_t)):
            some, times = self[b : b + step_b], slice(t, t + step_t)
            part = replace(
                some, luma_BTHW=some.luma_BTHW[:, times], chroma_BCTHW=some.chroma_BCTHW[:, :, times]
            )
            for channel, values_BTHW in enumerate(_channels(part)):
                clip_BCTHW[b : b + step_b, channel, times] = values_BTHW
        return clip_BCTHW

    def rgb_at_once(self) -> Tensor:
        """The result of `rgb` without parts: compiled, it needs no intermediate tensors."""
        return torch.stack([values_BTHW.to(torch.uint8) for values_BTHW in _channels(self)], dim=1)


# Clips as planes, or clip_BCTHW uint8 RGB after colour augmentation, mixing or `ClipBatch.to`.
Pixels = YuvClips | Tensor


def to_rgb(pixels: Pixels) -> Tensor:
    """Convert clips to clip_BCTHW, uint8 RGB."""
    return pixels if isinstance(pixels, Tensor) else pixels.rgb()


@cache
def compiled_to_rgb(backend: str | Callable[..., Any] = "inductor") -> Callable[[Pixels], Tensor]:
    """`to_rgb` with a compiled conversion of planes, for batches of one shape."""
    convert = torch.compile(YuvClips.rgb_at_once, dynamic=False, backend=backend)
    return lambda pixels: pixels if isinstance(pixels, Tensor) else convert(pixels)


def to_luma(pixels: Pixels) -> Tensor:
    """Convert clips to luma_BTHW, uint8: the luma of ITU-R BT.601 in full range.

    Integer arithmetic gives the same bits on every device. Planes and their RGB give the same values but for
    rounding (at most 1 apart) and for colours outside of RGB, which RGB clips.
    """
    if isinstance(pixels, Tensor):
        red, green, blue = pixels.unbind(1)
        sum_BTHW = red.to(torch.int32).mul_(_RED).add_(green, alpha=_GREEN).add_(blue, alpha=_BLUE)
        return sum_BTHW.add_(1 << (_SHIFT - 1)).bitwise_right_shift_(_SHIFT).to(torch.uint8)
    luma_BTHW = torch.empty_like(pixels.luma_BTHW)
    for b, t in product(range(len(pixels)), range(luma_BTHW.shape[1])):
        luma_BTHW[b, t] = _frame_luma(pixels, b, t)
    return luma_BTHW


def _frame_luma(clips: YuvClips, clip: int, frame: int) -> Tensor:
    """The luma of one frame, whose temporaries fit a CPU's caches."""
    offset, gain, *_, u_weight, v_weight = clips.colour_BX[clip].tolist()
    sum_HW = clips.luma_BTHW[clip, frame].to(torch.int32).sub_(offset).mul_(gain)
    if u_weight or v_weight:
        u, v = clips.chroma_BCTHW[clip, :, frame].to(torch.int32).sub_(128)
        height, width = sum_HW.shape
        row_hW = u.mul_(u_weight).add_(v, alpha=v_weight).repeat_interleave(2, dim=1)[:, :width]
        sum_HW[::2] += row_hW
        sum_HW[1::2] += row_hW[: height // 2]
    return sum_HW.add_(1 << (_SHIFT - 1)).bitwise_right_shift_(_SHIFT).clamp_(0, 255)


def map_pixels(function: Callable[[Tensor], Tensor], pixels: Pixels) -> Pixels:
    """Apply a function to every tensor."""
    return function(pixels) if isinstance(pixels, Tensor) else pixels.map(function)


def on_device(
    pixels: Pixels, device: torch.device, *, convert: Callable[[Pixels], Tensor] = to_rgb
) -> Tensor:
    """Move clips to a device, asynchronously from pinned memory, and convert them there to clip_BCTHW."""
    return convert(map_pixels(lambda tensor: tensor.to(device, non_blocking=True), pixels))


def join(parts: Sequence[Pixels]) -> Pixels:
    """Concatenate clips; RGB if any of them is."""
    planes = [part for part in parts if isinstance(part, YuvClips)]
    if len(planes) < len(parts):
        return torch.cat([to_rgb(part) for part in parts])
    return YuvClips(
        luma_BTHW=torch.cat([part.luma_BTHW for part in planes]),
        chroma_BCTHW=torch.cat([part.chroma_BCTHW for part in planes]),
        colour_BX=torch.cat([part.colour_BX for part in planes]),
    )


def split_in_time(pixels: Pixels, parts: int) -> Pixels:
    """Split clips into equal parts: first the first parts of all clips, then the second parts."""
    if isinstance(pixels, YuvClips):
        return YuvClips(
            luma_BTHW=pixels.luma_BTHW.unflatten(1, (parts, -1)).transpose(0, 1).flatten(0, 1),
            chroma_BCTHW=_split_in_time(pixels.chroma_BCTHW, parts),
            colour_BX=pixels.colour_BX.repeat(parts, 1),
        )
    return _split_in_time(pixels, parts)


def _split_in_time(clip_BCTHW: Tensor, parts: int) -> Tensor:
    return clip_BCTHW.unflatten(2, (parts, -1)).movedim(2, 0).flatten(0, 1)


def colour_coefficients(red_weight: float, blue_weight: float, *, is_full_range: bool) -> list[int]:
    """Coefficients of the conversion of Y, U, V to RGB and to luma, as a row of `YuvClips.colour_BX`.

    Args:
        red_weight, blue_weight: luma weights Kr and Kb of the matrix (ITU-T H.273, table 4).
        is_full_range: whether Y, U and V use all values, or 16-235 and 16-240.

    Returns:
        Y's offset, then in 8192ths: Y's gain, V in red, U and V in green, U in blue, and U and V in the luma
        of BT.601 (0 for the BT.601 matrix).
    """
    green_weight = 1 - red_weight - blue_weight
    gain, stretch = (1.0, 1.0) if is_full_range else (255 / 219, 255 / 224)
    red, blue = 2 * (1 - red_weight) * stretch, 2 * (1 - blue_weight) * stretch
    u_green, v_green = -blue * blue_weight / green_weight, -red * red_weight / green_weight
    in_luma = 0.587 * u_green + 0.114 * blue, 0.299 * red + 0.587 * v_green
    coefficients = [gain, red, u_green, v_green, blue, *in_luma]
    return [0 if is_full_range else 16, *(round(value * 2**_SHIFT) for value in coefficients)]


def _channels(planes: YuvClips) -> Iterator[Tensor]:
    """Red, green and blue from 0 to 255, each int32 of shape (B, T, H, W)."""
    offset, gain, v_red, u_green, v_green, u_blue, *_ = planes.colour_BX[:, :, None, None, None].unbind(1)
    bright_BTHW = (planes.luma_BTHW.to(torch.int32) - offset).mul_(gain)
    bright_BTHW += 1 << (_SHIFT - 1)  # rounds
    u, v = (planes.chroma_BCTHW.to(torch.int32) - 128).unbind(1)
    height, width = bright_BTHW.shape[2:]
    for part in (v * v_red, u * u_green + v * v_green, u * u_blue):
        large_BTHW = part.repeat_interleave(2, dim=3).repeat_interleave(2, dim=2)[:, :, :height, :width]
        large_BTHW.add_(bright_BTHW).bitwise_right_shift_(_SHIFT)
        yield large_BTHW.clamp_(0, 255)
