"""Views of clips: random resized crops, of which only some tokens are cut out."""

import math

import torch
from torch import Tensor

from kinemae.data_tools.randomness import ClipRandom
from kinemae.pretrain.model.token_positions import coordinates
from kinemae.pretrain.model.tokens import Patch, TokenGrid

ASPECT = 4 / 3
"""Largest ratio of the sides of a crop."""


def draw_crops(draws: ClipRandom, *, low: float, high: float) -> Tensor:
    """Draw the place of a crop for each row, as crop_B4: top, left, height and width as fractions.

    The area is uniform between `low` and `high` (fractions of the clip), the aspect log-uniform, as in
    torchvision's RandomResizedCrop; a side is at most that of the clip.
    """
    area_B, aspect_B, top_B, left_B = draws.uniform("crop", (4,)).unbind(1)
    area_B = low + (high - low) * area_B
    root_B = ((2 * aspect_B - 1) * (math.log(ASPECT) / 2)).exp()
    height_B, width_B = (area_B.sqrt() * root_B).clamp(max=1), (area_B.sqrt() / root_B).clamp(max=1)
    return torch.stack([top_B * (1 - height_B), left_B * (1 - width_B), height_B, width_B], dim=1)


def draw_tokens(draws: ClipRandom, grid: TokenGrid, *, slices: int, count: int) -> Tensor:
    """Draw the tokens of each row that are kept, as index_BK, ascending.

    Args:
        slices: number of successive slices from which they are drawn.
        count: K.
    """
    order_BN = draws.uniform("drop", (slices * grid.per_slice,)).argsort(dim=1)
    start_B1 = (draws.uniform("time", (1,)) * (grid.t - slices + 1)).long()
    return order_BN[:, :count].sort(dim=1).values + start_B1 * grid.per_slice


def take_crop_patches(
    clip_BCTHW: Tensor, crop_R4: Tensor, index_RK: Tensor, grid: TokenGrid, patch: Patch
) -> Tensor:
    """Cut patches out of crops that are resized to the size of the clip, as uint8 patches_RKP.

    Only the pixels of these patches are interpolated (bilinear).

    Args:
        crop_R4: crops as `draw_crops` returns them, R / B successive ones of each clip.
        index_RK: the tokens to cut out, in the grid of the resized crop.
    """
    slice_RK, row_RK, column_RK = coordinates(index_RK, grid)
    pixel = [torch.arange(side, device=index_RK.device) for side in patch]
    frame_RKX = slice_RK[..., None] * patch[0] + pixel[0]
    top_R, left_R, height_R, width_R = crop_R4.unbind(1)
    low_y, high_y, part_y = _between(
        row_RK[..., None] * patch[1] + pixel[1], top_R, height_R, clip_BCTHW.shape[3]
    )
    low_x, high_x, part_x = _between(
        column_RK[..., None] * patch[2] + pixel[2], left_R, width_R, clip_BCTHW.shape[4]
    )
    clip_BTHWC = clip_BCTHW.movedim(1, -1)
    clips, rows = clip_BCTHW.shape[0], index_RK.shape[0]
    clip_R = torch.arange(rows, device=index_RK.device) // (rows // clips)

    def pixels(y: Tensor, x: Tensor) -> Tensor:
        found = clip_BTHWC[
            clip_R[:, None, None, None, None],
            frame_RKX[..., None, None],
            y[:, :, None, :, None],
            x[:, :, None, None],
        ]
        return found.float()

    part_x = part_x[:, :, None, None, :, None]
    upper = pixels(low_y, low_x).lerp(pixels(low_y, high_x), part_x)
    lower = pixels(high_y, low_x).lerp(pixels(high_y, high_x), part_x)
    return upper.lerp(lower, part_y[:, :, None, :, None, None]).round().to(torch.uint8).flatten(2)


def _between(
    place_RKX: Tensor, start_R: Tensor, part_R: Tensor, length: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The two pixels of the clip around each pixel of a crop, and the weight of the second one."""
    start_R11, part_R11 = start_R[:, None, None], part_R[:, None, None]
    source_RKX = (start_R11 * length + (place_RKX + 0.5) * part_R11 - 0.5).clamp(0, length - 1)
    low_RKX = source_RKX.floor()
    return low_RKX.long(), (low_RKX.long() + 1).clamp(max=length - 1), source_RKX - low_RKX
