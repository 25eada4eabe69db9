"""Pixel noise of low rank that is correlated over time."""

from typing import Any

import torch
from torch import Tensor

from kinemae.data_tools.config import require
from kinemae.data_tools.randomness import ClipRandom
from kinemae.pretrain.model.token_positions import TokenPositions
from kinemae.pretrain.model.tokens import COLOURS, Patch, gather_tokens
from kinemae.pretrain.noise.base import Noise, Strength


class CorrelatedNoise(Noise):
    """Adds random patterns with normally distributed weights that drift over time.

    A clip draws `rank` patterns, white noise over the pixels of a patch in one frame. At each spatial
    position their weights follow a stationary first-order autoregression from frame to frame (over time the
    progressive noise of arXiv 2305.10474; the low rank has no published source). Averaging over a few frames
    does not remove this noise. The noise of a token does not depend on which other tokens are visible.

    Args:
        std: standard deviation at level 1, in normalized units (1 is the deviation of a colour).
        rank: number of patterns.
        correlation: correlation of the weights with those of the frame before, 0 to 1; 1 for constant noise.
        strength: see `Strength`.
    """

    def __init__(
        self,
        *,
        std: float = 0.5,
        rank: int = 4,
        correlation: float = 0.9,
        strength: dict[str, Any] | None = None,
    ):
        require(std >= 0, "noise.args.std", "be 0 or more", std)
        require(rank >= 1, "noise.args.rank", "be at least 1", rank)
        require(0 <= correlation <= 1, "noise.args.correlation", "lie between 0 and 1", correlation)
        self.std = std
        self.rank = rank
        self.correlation = correlation
        self.strength = Strength.read(strength)
        self.is_on_patches = std > 0

    def on_patches(
        self,
        patches_BKP: Tensor,
        level_B: Tensor,
        draws: ClipRandom,
        *,
        positions: TokenPositions,
        patch: Patch,
    ) -> Tensor:
        pattern_BRX = draws.normal("noise/correlated/pattern", (self.rank, patch[1] * patch[2] * COLOURS))
        size_B11 = self.std / self.rank**0.5 * level_B[:, None, None]
        weight_BNX = size_B11 * self._weights(draws, positions, patch[0])
        index_BK = positions.indices(patches_BKP.device).expand(*patches_BKP.shape[:2])
        weight_BKFR = gather_tokens(weight_BNX, index_BK).unflatten(2, (patch[0], self.rank))
        # No matmul, since autocast would round it to bfloat16.
        noise = sum(weight_BKFR[..., i, None] * pattern_BRX[:, None, None, i] for i in range(self.rank))
        return patches_BKP + noise.flatten(2).to(patches_BKP.dtype)

    def _weights(self, draws: ClipRandom, positions: TokenPositions, frames: int) -> Tensor:
        """Weights of the patterns in the frames of each token, (B, N, frames * rank), of variance 1."""
        grid = positions.grid
        fresh = draws.normal("noise/correlated/weight", (grid.t * frames, grid.per_slice, self.rank))
        rest = (1 - self.correlation**2) ** 0.5
        drifted = [fresh[:, 0]]
        for frame in range(1, grid.t * frames):
            drifted.append(self.correlation * drifted[-1] + rest * fresh[:, frame])
        by_slice = torch.stack(drifted, dim=1).unflatten(1, (grid.t, frames))
        return by_slice.transpose(2, 3).flatten(3).flatten(1, 2)
