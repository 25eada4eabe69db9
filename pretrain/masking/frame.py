"""Frame masking: whole time slices are hidden (arXiv 2203.12602)."""

from typing import Literal, get_args

import torch
from torch import Tensor

from kinemae.data_tools.config import require
from kinemae.pretrain.masking.base import RatioMasking, shuffled
from kinemae.pretrain.model.tokens import TokenGrid

Order = Literal["causal", "random"]


class FrameMasking(RatioMasking):
    """Hides all tokens of some time slices: interpolation or prediction in time.

    Args:
        ratio: fraction of the slices to hide, rounded down.
        order: "random": hide random slices. "causal": hide the last slices.
    """

    def __init__(self, *, ratio: float = 0.5, order: str = "random"):
        super().__init__(ratio=ratio)
        known = get_args(Order)
        require(order in known, "masking.args.order", f"be one of {', '.join(known)}", order)
        self.order = order

    def copies(self, grid: TokenGrid) -> int:
        return grid.per_slice

    def split(
        self, grid: TokenGrid, generator: torch.Generator, motion_N: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        visible = self.counts(grid)[0] // grid.per_slice
        is_random = self.order == "random"
        order_t = torch.randperm(grid.t, generator=generator) if is_random else torch.arange(grid.t)
        tokens_tS = torch.arange(grid.tokens).view(grid.t, grid.per_slice)
        hidden_M = shuffled(tokens_tS[order_t[visible:]].flatten(), generator)
        return tokens_tS[order_t[:visible].sort().values].flatten(), hidden_M
