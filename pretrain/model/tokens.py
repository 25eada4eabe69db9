"""Patches: cut clips into patches and back, gather, normalize. Legend of the dimension suffixes:

    B  clips in a batch          N      tokens of the full grid, t * h * w
    C  colour channels           K / M  visible / target (or hidden) tokens
    T  frames                    S      tokens of one time slice, h * w
    H W  height, width in px     D      model width (encoder or decoder)
    t h w  the token grid        A / F  attention heads / width of one head
    P  values in one patch       Y      classes

Tokens are in (t, h, w) order, w fastest; the values of a patch in (frame, row, column, channel)
order. Patches stay uint8 until they are gathered.
"""

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

Patch = tuple[int, int, int]
"""Size of a patch in (frames, pixels, pixels)."""

COLOURS = 3
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
"""ImageNet statistics, RGB on a scale of 0 to 1."""


_MIDDLE = 128  # sums around it stay small, so float32 suffices in exported models
_LEAST_DEVIATION = 1.0
"""Grey levels; the noise of clips with less contrast is not amplified further."""


@dataclass(frozen=True)
class TokenGrid:
    """Token grid of a clip: t time slices of h rows and w columns."""

    t: int
    h: int
    w: int

    @property
    def tokens(self) -> int:
        """N, number of tokens."""
        return self.t * self.h * self.w

    @property
    def per_slice(self) -> int:
        """S, number of tokens in a time slice."""
        return self.h * self.w

    @classmethod
    def of(cls, frames: int, size: int, patch: Patch) -> "TokenGrid":
        """The grid of a square clip.

        Raises:
            ValueError: the clip is not a whole number of patches.
        """
        return cls(*_counts((frames, size, size), patch))


def patchify(clip_BCTHW: Tensor, patch: Patch) -> Tensor:
    """Cut a clip into all its space-time patches, of the clip's dtype, as patches_BNP.

    Raises:
        ValueError: the clip is not a whole number of patches.
    """
    return _windows(clip_BCTHW, patch).flatten(4).flatten(1, 3)


def unpatchify(patches_BNP: Tensor, grid: TokenGrid, patch: Patch) -> Tensor:
    """Assemble a clip from all its patches, as clip_BCTHW; the inverse of `patchify`."""
    frames, height, width = patch
    windows = patches_BNP.unflatten(2, (*patch, COLOURS)).unflatten(1, (grid.t, grid.h, grid.w))
    clip_BCTHW = windows.permute(0, 7, 1, 4, 2, 5, 3, 6)
    return clip_BCTHW.reshape(-1, COLOURS, grid.t * frames, grid.h * height, grid.w * width)


def take_patches(
    clip_BCTHW: Tensor, index_BK: Tensor, patch: Patch, *, clip_BK: Tensor | None = None
) -> Tensor:
    """Cut only the indexed patches out of a clip, as patches_BKP; equals gathering from `patchify`.

    With a mask ratio of 0.9 this reads a tenth of the pixels.

    Args:
        index_BK: a row for each clip, or several (`clip_of_rows`).
        clip_BK: clip of each patch, for packed clips, which share a single row.

    Raises:
        ValueError: the clip is not a whole number of patches.
    """
    windows = _windows(clip_BCTHW, patch)
    h, w = windows.shape[2:4]
    if clip_BK is None:
        clip_BK = clip_of_rows(index_BK, clip_BCTHW.shape[0])
    slice_BK = index_BK.div(h * w, rounding_mode="floor")
    row_BK = index_BK.div(w, rounding_mode="floor") % h
    return windows[clip_BK, slice_BK, row_BK, index_BK % w].flatten(2)


def gather_tokens(x_BNP: Tensor, index_BK: Tensor) -> Tensor:
    """Gather tokens by index, as x_BKP; the index has a row for each clip, or several (`clip_of_rows`)."""
    if index_BK.shape[0] != x_BNP.shape[0]:
        return x_BNP[clip_of_rows(index_BK, x_BNP.shape[0]), index_BK]
    return x_BNP.gather(1, index_BK[..., None].expand(-1, -1, x_BNP.shape[2]))


def clip_of_rows(index_BK: Tensor, clips: int) -> Tensor:
    """The clip of each row of an index, as clip_B1.

    Each clip has the same number of rows, one for each of its masks, one after another.
    """
    # 0, 1, ...: `arange` of a variable number of clips is an operator that few ONNX runtimes optimize.
    row_B1 = torch.ones_like(index_BK[:, :1]).cumsum(dim=0) - 1
    masks = index_BK.shape[0] // clips
    return row_B1 if masks == 1 else row_B1 // masks


def normalize(patches_BKP: Tensor, mean: tuple[float, ...] = MEAN, std: tuple[float, ...] = STD) -> Tensor:
    """Normalize uint8 patches to float32 by mean and standard deviation of each colour.

    Raises:
        ValueError: the pixels are not uint8.
    """
    if patches_BKP.dtype != torch.uint8:
        raise ValueError(
            f"pixels: expected uint8 from 0 to 255, got {patches_BKP.dtype}; fix: pass the decoded bytes, or "
            "(255 * clip).round().to(torch.uint8) for a clip on a scale of 0 to 1"
        )
    # The compiler warns about caches; a compiled graph contains the fills.
    colour_line = _colour_line.__wrapped__ if torch.compiler.is_compiling() else _colour_line
    scale_C, shift_C = colour_line(mean, std, patches_BKP.device)
    return torch.addcmul(shift_C, patches_BKP.unflatten(2, (-1, len(mean))).float(), scale_C).flatten(2)


def standardize(clip_BCTHW: Tensor, mean: tuple[float, ...] = MEAN, std: tuple[float, ...] = STD) -> Tensor:
    """Scale the values of each uint8 clip to one mean and deviation: the averages of `mean` and `std`.

    A clip has one scale and one shift, so colours and motion keep their proportions. Results are rounded and
    clamped to uint8. Sums of integers give the same bits for any number of clips.
    """
    value_BX = clip_BCTHW.flatten(1).to(torch.int32) - _MIDDLE
    count = clip_BCTHW[0].numel()
    mean_B = value_BX.sum(dim=1).double() / count
    variance_B = value_BX.square().sum(dim=1).double() / count - mean_B.square()
    scale_B = 255 * sum(std) / len(std) / variance_B.clamp(min=_LEAST_DEVIATION**2).sqrt()
    shift_B = 255 * sum(mean) / len(mean) - mean_B * scale_B
    scaled_BX = torch.addcmul(shift_B.float()[:, None], value_BX.float(), scale_B.float()[:, None])
    return scaled_BX.round_().clamp_(0, 255).to(torch.uint8).view_as(clip_BCTHW)


def denormalize(patches_BKP: Tensor, mean: tuple[float, ...] = MEAN, std: tuple[float, ...] = STD) -> Tensor:
    """Invert `normalize`, to pixels on a scale of 0 to 1, not clamped."""
    scale_C, shift_C = _colour_line(mean, std, patches_BKP.device)
    return ((patches_BKP.float().unflatten(2, (-1, len(mean))) - shift_C) / (scale_C * 255)).flatten(2)


def to_bytes(patches_BKP: Tensor) -> Tensor:
    """Convert pixels on a scale of 0 to 1 to uint8, clamped and rounded."""
    return patches_BKP.clamp(0, 1).mul(255).round().to(torch.uint8)


@functools.cache
def _colour_line(
    mean: tuple[float, ...], std: tuple[float, ...], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Scale and shift of `normalize`, filled on the device: a copy from the host would synchronize it."""
    with torch.inference_mode(False):  # a tensor made in inference mode could not be used in training
        scale = [torch.full((1,), 1 / (255 * s), device=device) for s in std]
        shift = [torch.full((1,), -m / s, device=device) for m, s in zip(mean, std, strict=True)]
        return torch.cat(scale), torch.cat(shift)


def _windows(clip_BCTHW: Tensor, patch: Patch) -> Tensor:
    """A view of the clip as (B, t, h, w, frame, row, column, channel)."""
    size = clip_BCTHW.shape[2:]
    t, h, w = _counts((size[0], size[1], size[2]), patch)
    frames, height, width = patch
    split = clip_BCTHW.reshape(*clip_BCTHW.shape[:2], t, frames, h, height, w, width)
    return split.permute(0, 2, 4, 6, 3, 5, 7, 1)


def _counts(size: tuple[int, int, int], patch: Patch) -> tuple[int, int, int]:
    if any(length < 1 or length % part for length, part in zip(size, patch, strict=True)):
        raise ValueError(
            f"a clip of {size[0]} frames at {size[1]}x{size[2]} cannot be cut into patches of {patch[0]} "
            f"frames at {patch[1]}x{patch[2]}: clip.frames must be a multiple of "
            "model.patch_frames and clip.size of model.patch_size"
        )
    return size[0] // patch[0], size[1] // patch[1], size[2] // patch[2]
