"""Uniform masking: any token of the clip is hidden with the same chance (arXiv 2205.09113)."""

import torch
from torch import Tensor

from kinemae.pretrain.masking.base import Masking, check_ratio, split_counts
from kinemae.pretrain.model.tokens import TokenGrid


class UniformMasking(Masking):
    """Hides tokens anywhere in space and time, a fixed number of them.

    Args:
        ratio: share of the clip's tokens to hide, rounded down.
    """

    def __init__(self, *, ratio: float = 0.9):
        check_ratio(ratio)
        self.ratio = ratio

    def counts(self, grid: TokenGrid) -> tuple[int, int]:
        """See `Masking.counts`."""
        return split_counts(self.ratio, grid)

    def split(
        self, grid: TokenGrid, generator: torch.Generator, motion_N: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """See `Masking.split`."""
        hidden = self.counts(grid)[1]
        order_N = torch.randperm(grid.tokens, generator=generator)
        return order_N[hidden:].sort().values, order_N[:hidden]
