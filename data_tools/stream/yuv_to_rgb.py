"""Pixels of clips as they travel: uint8 planes of brightness and colour, made RGB where the model is.

Planes are half the bytes of RGB, and the step from one to the other costs a GPU nothing. It is integer
arithmetic, so every device gives the same bits. A colour stands for two by two pixels and is repeated, as
FFmpeg's fast conversion does.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product

import torch
from torch import Tensor

_SHIFT = 13  # coefficients are whole 8192ths; sums stay below 2 ** 23
# What is converted at once: on the CPU what stays in its caches, elsewhere what bounds the memory to 150 MB.
_PIXELS_ON_CPU, _PIXELS_AT_ONCE = 1 << 18, 1 << 23
COLOUR_COEFFICIENTS = 8
# Shares of red, green and blue in the luma of ITU-R BT.601, in 8192ths. Their sum is 8192.
_RED, _GREEN, _BLUE = 2449, 4809, 934


@dataclass(frozen=True, kw_only=True)
class YuvClips:
    """B clips as planes.

    Attributes:
        luma_BTHW: uint8 brightness as it was stored, of any range and matrix; `to_luma` gives grey levels.
        chroma_BCTHW: uint8, both colour differences at half the height and width, rounded up.
        colour_BX: int32, what the numbers mean, see `colour_coefficients`; zeros make a clip black.
    """

    luma_BTHW: Tensor
    chroma_BCTHW: Tensor
    colour_BX: Tensor

    @classmethod
    def empty(cls, clips: int, frames: int, size: int) -> "YuvClips":
        """Black clips, to be filled."""
        half = (size + 1) // 2
        return cls(
            luma_BTHW=torch.zeros((clips, frames, size, size), dtype=torch.uint8),
            chroma_BCTHW=torch.zeros((clips, 2, frames, half, half), dtype=torch.uint8),
            colour_BX=torch.zeros((clips, COLOUR_COEFFICIENTS), dtype=torch.int32),
        )

    def map(self, function: Callable[[Tensor], Tensor]) -> "YuvClips":
        """The same done to every tensor."""
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
        """clip_BCTHW, uint8 RGB, on the device that holds the planes."""
        clips, frames, height, width = self.luma_BTHW.shape
        clip_BCTHW = self.luma_BTHW.new_empty((clips, 3, frames, height, width))
        most = (_PIXELS_ON_CPU if self.luma_BTHW.device.type == "cpu" else _PIXELS_AT_ONCE) // (
            height * width
        )
        step_t = max(min(most, frames), 1)
        step_b = max(most // frames, 1)
        for b, t in product(range(0, clips, step_b), range(0, frames, step_t)):
            some, when = self[b : b + step_b], slice(t, t + step_t)
            part = replace(
                some, luma_BTHW=some.luma_BTHW[:, when], chroma_BCTHW=some.chroma_BCTHW[:, :, when]
            )
            _convert(part, clip_BCTHW[b : b + step_b, :, when])
        return clip_BCTHW


# Clips as planes, or clip_BCTHW uint8 RGB where something on the way needed that.
Pixels = YuvClips | Tensor


def to_rgb(pixels: Pixels) -> Tensor:
    """clip_BCTHW, uint8 RGB."""
    return pixels if isinstance(pixels, Tensor) else pixels.rgb()


def to_luma(pixels: Pixels) -> Tensor:
    """Grey levels of clips: the luma of ITU-R BT.601 in full range, 0 to 255, as luma_BTHW uint8.

    Integer arithmetic: the same bits on every device. Planes and their RGB give the same levels but for
    rounding (at most 1 apart) and for colours outside of RGB, which RGB clips.
    """
    if isinstance(pixels, Tensor):
        red, green, blue = pixels.unbind(1)
        sum_BTHW = red.to(torch.int32).mul_(_RED).add_(green, alpha=_GREEN).add_(blue, alpha=_BLUE)
        return sum_BTHW.add_(1 << (_SHIFT - 1)).bitwise_right_shift_(_SHIFT).to(torch.uint8)
    luma_BTHW = torch.empty_like(pixels.luma_BTHW)
    for b, t in product(range(len(pixels)), range(luma_BTHW.shape[1])):
        luma_BTHW[b, t] = _grey_levels(pixels, b, t)
    return luma_BTHW


def _grey_levels(clips: YuvClips, clip: int, frame: int) -> Tensor:
    """The grey levels of one frame, whose temporaries stay in a CPU's caches."""
    offset, gain, *_, u_share, v_share = clips.colour_BX[clip].tolist()
    sum_HW = clips.luma_BTHW[clip, frame].to(torch.int32).sub_(offset).mul_(gain)
    if u_share or v_share:
        u, v = clips.chroma_BCTHW[clip, :, frame].to(torch.int32).sub_(128)
        height, width = sum_HW.shape
        row_hW = u.mul_(u_share).add_(v, alpha=v_share).repeat_interleave(2, dim=1)[:, :width]
        sum_HW[::2] += row_hW
        sum_HW[1::2] += row_hW[: height // 2]
    return sum_HW.add_(1 << (_SHIFT - 1)).bitwise_right_shift_(_SHIFT).clamp_(0, 255)


def map_pixels(function: Callable[[Tensor], Tensor], pixels: Pixels) -> Pixels:
    """The same done to every tensor."""
    return function(pixels) if isinstance(pixels, Tensor) else pixels.map(function)


def on_device(pixels: Pixels, device: torch.device) -> Tensor:
    """Move the clips without waiting for pinned memory, and make them RGB there: clip_BCTHW."""
    return to_rgb(map_pixels(lambda tensor: tensor.to(device, non_blocking=True), pixels))


def join(parts: Sequence[Pixels]) -> Pixels:
    """Clips of several origins as one run of clips; RGB if any of them is."""
    planes = [part for part in parts if isinstance(part, YuvClips)]
    if len(planes) < len(parts):
        return torch.cat([to_rgb(part) for part in parts])
    return YuvClips(
        luma_BTHW=torch.cat([part.luma_BTHW for part in planes]),
        chroma_BCTHW=torch.cat([part.chroma_BCTHW for part in planes]),
        colour_BX=torch.cat([part.colour_BX for part in planes]),
    )


def split_in_time(pixels: Pixels, parts: int) -> Pixels:
    """Clips cut into equal parts: first all first parts, then all second ones."""
    if isinstance(pixels, YuvClips):
        return YuvClips(
            luma_BTHW=pixels.luma_BTHW.unflatten(1, (parts, -1)).transpose(0, 1).flatten(0, 1),
            chroma_BCTHW=_cut_in_time(pixels.chroma_BCTHW, parts),
            colour_BX=pixels.colour_BX.repeat(parts, 1),
        )
    return _cut_in_time(pixels, parts)


def _cut_in_time(clip_BCTHW: Tensor, parts: int) -> Tensor:
    return clip_BCTHW.unflatten(2, (parts, -1)).movedim(2, 0).flatten(0, 1)


def colour_coefficients(red_share: float, blue_share: float, *, is_full_range: bool) -> list[int]:
    """What turns brightness Y and colour differences U, V into RGB, as a row of `YuvClips.colour_BX`.

    Args:
        red_share, blue_share: of red and blue in the brightness: they name the matrix (ITU-T H.273, table 4).
        is_full_range: whether Y, U and V use all values, or 16-235 and 16-240.

    Returns:
        Y's offset, then in 8192ths: Y's gain, V's share in red, U's and V's in green, U's in blue, and
        U's and V's in the luma of BT.601: 0 where the matrix is that one.
    """
    green_share = 1 - red_share - blue_share
    gain, stretch = (1.0, 1.0) if is_full_range else (255 / 219, 255 / 224)
    red, blue = 2 * (1 - red_share) * stretch, 2 * (1 - blue_share) * stretch
    u_green, v_green = -blue * blue_share / green_share, -red * red_share / green_share
    in_luma = 0.587 * u_green + 0.114 * blue, 0.299 * red + 0.587 * v_green
    shares = [gain, red, u_green, v_green, blue, *in_luma]
    return [0 if is_full_range else 16, *(round(share * 2**_SHIFT) for share in shares)]


def _convert(planes: YuvClips, out_BCTHW: Tensor) -> None:
    offset, gain, v_red, u_green, v_green, u_blue, *_ = planes.colour_BX[:, :, None, None, None].unbind(1)
    bright_BTHW = (planes.luma_BTHW.to(torch.int32) - offset).mul_(gain)
    bright_BTHW += 1 << (_SHIFT - 1)  # rounds
    u, v = (planes.chroma_BCTHW.to(torch.int32) - 128).unbind(1)
    height, width = bright_BTHW.shape[2:]
    for channel, share in enumerate((v * v_red, u * u_green + v * v_green, u * u_blue)):
        large_BTHW = share.repeat_interleave(2, dim=3).repeat_interleave(2, dim=2)[:, :, :height, :width]
        large_BTHW.add_(bright_BTHW).bitwise_right_shift_(_SHIFT)
        out_BCTHW[:, channel] = large_BTHW.clamp_(0, 255)
