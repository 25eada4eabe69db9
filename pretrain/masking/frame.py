"""Frame masking: whole time slices are hidden (arXiv 2203.12602)."""

from typing import Literal, get_args

import torch
from torch import Tensor

from kinemae.data_tools.config import require
from kinemae.pretrain.masking.base import Masking, check_ratio, split_counts
from kinemae.pretrain.model.tokens import TokenGrid

Order = Literal["causal", "random"]


class FrameMasking(Masking):
    """Hides every place of some time slices, so that what happens in between, or next, must be told.

    Args:
        ratio: share of the slices to hide, rounded down.
        order: "random": any slices are hidden. "causal": the last ones are, so that the first are seen and
            the later ones predicted.
    """

    def __init__(self, *, ratio: float = 0.5, order: str = "random"):
        check_ratio(ratio)
        known = get_args(Order)
        require(order in known, "masking.args.order", f"be one of {', '.join(known)}", order)
        self.ratio = ratio
        self.order = order

    def counts(self, grid: TokenGrid) -> tuple[int, int]:
        """See `Masking.counts`."""
        return split_counts(self.ratio, grid, copies=grid.per_slice)

    def split(
        self, grid: TokenGrid, generator: torch.Generator, motion_N: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """See `Masking.split`."""
        seen = self.counts(grid)[0] // grid.per_slice
        order_t = (
            torch.randperm(grid.t, generator=generator) if self.order == "random" else torch.arange(grid.t)
        )
        tokens_tS = torch.arange(grid.tokens).view(grid.t, grid.per_slice)
        hidden_M = tokens_tS[order_t[seen:]].flatten()
        order_M = torch.randperm(len(hidden_M), generator=generator)
        return tokens_tS[order_t[:seen].sort().values].flatten(), hidden_M[order_M]
