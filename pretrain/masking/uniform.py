"""Uniform masking: all tokens of a clip are hidden with the same probability (arXiv 2205.09113)."""

import torch
from torch import Tensor

from kinemae.pretrain.masking.base import RatioMasking
from kinemae.pretrain.model.tokens import TokenGrid


class UniformMasking(RatioMasking):
    """Hides a fixed number of tokens anywhere in space and time.

    Args:
        ratio: fraction of the clip's tokens to hide, rounded down.
    """

    def split(
        self, grid: TokenGrid, generator: torch.Generator, motion_N: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        hidden = self.counts(grid)[1]
        order_N = torch.randperm(grid.tokens, generator=generator)
        return order_N[hidden:].sort().values, order_N[:hidden]
