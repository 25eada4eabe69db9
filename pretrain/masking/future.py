"""Future masking: the last time slices are predicted from the first ones, over a gap."""

import torch
from torch import Tensor

from kinemae.data_tools.config import require
from kinemae.pretrain.masking.base import Masking, shuffled
from kinemae.pretrain.model.tokens import TokenGrid


class FutureMasking(Masking):
    """Shows tokens of the first slices (the context), skips a gap, and predicts all tokens after it.

    The gap and the hidden tokens of the context are not predicted. Without a gap, a prediction can copy the
    last frame of the context. "Causal multi-block" of V-JEPA's ablation also limits the context to the first
    frames, but it has no gap and hides blocks instead of random tokens (arXiv 2404.08471, section 4.4).

    Args:
        context: length of the context: from 1 a number of slices, below 1 a fraction of all slices, rounded
            down.
        gap: length of the gap, likewise; 0 for none.
        ratio: fraction of the context's tokens to hide at random, rounded down.
    """

    def __init__(self, *, context: float = 0.375, gap: float = 0.25, ratio: float = 0.0):
        for key, length, low in (("context", context, "above 0"), ("gap", gap, "of 0 or above")):
            is_length = 0 < length < 1 or (length >= 1 and float(length).is_integer())
            rule = f"be a fraction {low} and below 1, or a whole number of slices"
            require(is_length or (key == "gap" and length == 0), f"masking.args.{key}", rule, length)
        require(0 <= ratio < 1, "masking.args.ratio", "lie in [0, 1)", ratio)
        self.context = context
        self.gap = gap
        self.ratio = ratio

    def counts(self, grid: TokenGrid) -> tuple[int, int]:
        context, gap = self._slices(grid)
        if context < 1 or context + gap >= grid.t:
            raise ValueError(
                "masking.args: expected at least 1 slice of context and 1 slice after the gap, got "
                f"context={self.context} and gap={self.gap} on a grid of {grid.t} slices; fix: change "
                "context, gap or clip.frames"
            )
        tokens = context * grid.per_slice
        return tokens - int(self.ratio * tokens), (grid.t - context - gap) * grid.per_slice

    def split(
        self, grid: TokenGrid, generator: torch.Generator, motion_N: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        visible, predicted = self.counts(grid)
        context_K = torch.randperm(self._slices(grid)[0] * grid.per_slice, generator=generator)
        hidden_M = torch.arange(grid.tokens - predicted, grid.tokens)
        return context_K[:visible].sort().values, shuffled(hidden_M, generator)

    def _slices(self, grid: TokenGrid) -> tuple[int, int]:
        """Number of slices of the context and of the gap."""
        context, gap = (
            int(length if length >= 1 else length * grid.t) for length in (self.context, self.gap)
        )
        return context, gap
