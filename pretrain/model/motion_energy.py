"""Motion of each token, measured on luma (`to_luma`), for masks, pruning and weights of losses."""

import torch
import torch.nn.functional as F
from torch import Tensor

from kinemae.pretrain.model.tokens import Patch, TokenGrid, gather_tokens

STILL = 1.0
"""Grey levels; smaller motion is sensor and codec noise and counts as this much."""


def luma_grid(luma_BTHW: Tensor, patch: Patch) -> TokenGrid:
    """The token grid of such clips for this patch size."""
    _, frames, height, width = luma_BTHW.shape
    return TokenGrid(frames // patch[0], height // patch[1], width // patch[2])


def change(luma_BTHW: Tensor, patch: Patch) -> Tensor:
    """Difference of each token to the one before it at the same position, change_BN, float32.

    Mean absolute difference in grey levels between frames of the same index in both tubelets. Infinity in the
    first slice.
    """
    grid = luma_grid(luma_BTHW, patch)
    difference_BTHW = (luma_BTHW[:, patch[0] :].float() - luma_BTHW[:, : -patch[0]].float()).abs()
    first_B1hw = difference_BTHW.new_full((luma_BTHW.shape[0], 1, grid.h, grid.w), torch.inf)
    if grid.t == 1:
        return first_B1hw.flatten(1)
    return torch.cat([first_B1hw, _mean_over_patches(difference_BTHW, patch)], dim=1).flatten(1)


def motion(luma_BTHW: Tensor, patch: Patch) -> Tensor:
    """Change of each token from frame to frame, motion_BN, float32.

    Mean absolute difference in grey levels between each frame and the next; the last frame repeats the
    difference before it. Zeros for a clip of one frame.
    """
    difference_BTHW = luma_BTHW.float().diff(dim=1).abs()
    if not difference_BTHW.shape[1]:
        return _mean_over_patches(torch.zeros_like(luma_BTHW, dtype=torch.float32), patch).flatten(1)
    padded_BTHW = torch.cat([difference_BTHW, difference_BTHW[:, -1:]], dim=1)
    return _mean_over_patches(padded_BTHW, patch).flatten(1)


def motion_weights(luma_BTHW: Tensor, index_BM: Tensor, patch: Patch, *, strength: float) -> Tensor:
    """Weights of tokens by their motion, weight_BM1, with a mean of 1 in each row.

    A weight is proportional to motion ** strength, with a motion of at least `STILL`.
    """
    motion_BN1 = motion(luma_BTHW, patch).clamp(min=STILL)[..., None]
    motion_BM1 = gather_tokens(motion_BN1, index_BM)
    weight_BM1 = (motion_BM1 / motion_BM1.amax(dim=1, keepdim=True)) ** strength  # a large power is finite
    return weight_BM1 / weight_BM1.mean(dim=1, keepdim=True)


def _mean_over_patches(values_BTHW: Tensor, patch: Patch) -> Tensor:
    """Mean of each patch, (B, t, h, w)."""
    return F.avg_pool3d(values_BTHW[:, None], patch)[:, 0]
