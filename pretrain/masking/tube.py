"""Tube masking: the same spatial positions are hidden in all time slices (arXiv 2203.12602, section 3.3)."""

import torch
from torch import Tensor

from kinemae.pretrain.masking.base import RatioMasking, over_time, shuffled
from kinemae.pretrain.model.tokens import TokenGrid


class TubeMasking(RatioMasking):
    """Hides whole tubes in time, so that a still patch cannot be copied from a neighbouring slice.

    Args:
        ratio: fraction of a slice's positions to hide, rounded down as in VideoMAE: 0.9 of 14x14 hides 176.
    """

    def copies(self, grid: TokenGrid) -> int:
        return grid.t

    def split(
        self, grid: TokenGrid, generator: torch.Generator, motion_N: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        hidden = self.counts(grid)[1] // grid.t
        order_S = torch.randperm(grid.per_slice, generator=generator)
        hidden_M = shuffled(over_time(order_S[:hidden], grid), generator)
        return over_time(order_S[hidden:].sort().values, grid), hidden_M
