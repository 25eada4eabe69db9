"""HOG target: histograms of oriented gradients of the target patches (MaskFeat, arXiv 2112.09133)."""

import functools
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from kinemae.data_tools.config import require
from kinemae.pretrain.model.sizes import EncoderShape
from kinemae.pretrain.model.token_positions import coordinates
from kinemae.pretrain.model.tokens import COLOURS, TokenGrid, clip_of_rows
from kinemae.pretrain.targets.base import DecoderTarget, TargetInputs

BINS = 9
"""Orientations from 0 to 180 degrees, without sign."""


class HogTarget(DecoderTarget):
    """Predicts the HOG of the middle frame of each target patch with the mean squared error.

    As in MaskFeat: Sobel gradients per colour; the gradient magnitudes of a cell are summed in 9 orientation
    bins; each histogram is normalized to length 1. P is in (cell row, cell column, colour, orientation)
    order: 108 values by default. Of two frames the second is used. Gradients use one pixel beyond the patch.

    PySlowFast's MaskFeat code differs in two points: it has no Gaussian weights (`gaussian=False`), and uses
    the first of two frames.

    Args:
        cells: cells along a side of the patch; 2 gives MaskFeat's cells of 8 px for patches of 16 px.
        gaussian: weight magnitudes by a Gaussian around the patch centre with a deviation of half the patch.
        motion_weight: see `DecoderTarget`.
    """

    def __init__(self, *, cells: int = 2, gaussian: bool = True, motion_weight: float = 0.0):
        require(cells >= 1, "target.args.cells", "be at least 1", cells)
        super().__init__(motion_weight=motion_weight)
        self.cells = cells
        self.gaussian = gaussian

    def target_values(self, shape: EncoderShape) -> int:
        """See `Target.target_values`.

        Raises:
            ValueError: the cells do not divide the patch, or the patch is a single pixel.
        """
        _, height, width = shape.patch
        if height % self.cells or width % self.cells or min(height, width) < 2:
            raise ValueError(
                f"target.args.cells={self.cells} must divide model.patch_size, which must be at least 2, got "
                f"patches of {height}x{width} px"
            )
        return self.cells**2 * COLOURS * BINS

    def compute_target(self, inputs: TargetInputs) -> Tensor:
        length, orientation = _gradients(_bordered_patches(inputs))
        if self.gaussian:
            length = length * _gaussian_weights(*inputs.patch[1:], length.device)
        histogram = torch.stack(
            [self._sum_cells(length.where(orientation == k, 0.0)) for k in range(BINS)], dim=-1
        )
        return F.normalize(histogram, dim=-1).flatten(2)

    def _sum_cells(self, votes: Tensor) -> Tensor:
        """From (B, M, C, row, column) to (B, M, cell row, cell column, C)."""
        cells = votes.unflatten(4, (self.cells, -1)).unflatten(3, (self.cells, -1)).sum(dim=(4, 6))
        return cells.permute(0, 1, 3, 4, 2)


def _bordered_patches(inputs: TargetInputs) -> Tensor:
    """Middle frames of the target patches with a border of one pixel, float (B, M, C, row, column).

    The border is mirrored at the edge of the frame.
    """
    frames, height, width = inputs.patch
    middle_BCtHW = inputs.clip_BCTHW[:, :, frames // 2 :: frames]
    for dim in (3, 4):
        length = middle_BCtHW.shape[dim]
        place = torch.arange(-1, length + 1, device=middle_BCtHW.device).abs()
        middle_BCtHW = middle_BCtHW.index_select(dim, place.where(place < length, length - 2))
    windows = middle_BCtHW.unfold(3, height + 2, height).unfold(4, width + 2, width)
    grid = TokenGrid(windows.shape[2], windows.shape[3], windows.shape[4])
    slice_BM, row_BM, column_BM = coordinates(inputs.target_BM, grid)
    clip_B1 = clip_of_rows(inputs.target_BM, len(windows))
    return windows.permute(0, 2, 3, 4, 1, 5, 6)[clip_B1, slice_BM, row_BM, column_BM].float()


def _gradients(bordered: Tensor) -> tuple[Tensor, Tensor]:
    """Magnitude and orientation bin of the Sobel gradient of each pixel, without the border."""
    across = bordered[..., :-2, :] + 2 * bordered[..., 1:-1, :] + bordered[..., 2:, :]
    down = bordered[..., :-2] + 2 * bordered[..., 1:-1] + bordered[..., 2:]
    x = across[..., :-2] - across[..., 2:]
    y = down[..., :-2, :] - down[..., 2:, :]
    orientation = (torch.atan2(x, y) * (BINS / math.pi)).floor() % BINS
    return torch.hypot(x, y), orientation


@functools.cache
def _gaussian_weights(height: int, width: int, device: torch.device) -> Tensor:
    """Gaussian over a patch, with a deviation of half the patch."""
    with torch.inference_mode(False):  # a tensor made in inference mode could not be used in training
        lines = [
            torch.exp(-0.5 * ((torch.arange(side) - (side - 1) / 2) / (side / 2)) ** 2)
            for side in (height, width)
        ]
        return torch.outer(*lines).to(device)
