"""Tube masking: the same places are hidden in every time slice (arXiv 2203.12602, section 3.3)."""

import torch
from torch import Tensor

from kinemae.pretrain.masking.base import Masking, check_ratio, over_time, split_counts
from kinemae.pretrain.model.tokens import TokenGrid


class TubeMasking(Masking):
    """Hides whole tubes in time, so that a still patch cannot be copied from a neighbouring slice.

    Args:
        ratio: share of a slice's places to hide, rounded down as VideoMAE does: 0.9 of 14x14 hides 176.
    """

    def __init__(self, *, ratio: float = 0.9):
        check_ratio(ratio)
        self.ratio = ratio

    def counts(self, grid: TokenGrid) -> tuple[int, int]:
        """See `Masking.counts`."""
        return split_counts(self.ratio, grid, copies=grid.t)

    def split(
        self, grid: TokenGrid, generator: torch.Generator, motion_N: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """See `Masking.split`."""
        hidden = self.counts(grid)[1] // grid.t
        order_S = torch.randperm(grid.per_slice, generator=generator)
        hidden_M = over_time(order_S[:hidden], grid)
        order_M = torch.randperm(len(hidden_M), generator=generator)
        return over_time(order_S[hidden:].sort().values, grid), hidden_M[order_M]
