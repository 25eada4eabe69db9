"""Where the tokens of a sequence stand: what positions, attention kinds and packing go by."""

from dataclasses import dataclass

import torch
from torch import Tensor

from kinemae.pretrain.model.tokens import TokenGrid

REGISTER = -1
"""The index of a token that stands nowhere; it sees and is seen by every token of its clip."""


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenPositions:
    """Which token of the grid each token of a sequence is.

    Attributes:
        grid: the tokens of a full clip.
        index_BN: int64, each token's number in the grid, or REGISTER. None: all of the grid's, in order.
        lengths: None: each row is one clip. Given: there is one row, in which clips of these lengths
            (registers included) stand one after another, and no token sees another clip's.
    """

    grid: TokenGrid
    index_BN: Tensor | None = None
    lengths: tuple[int, ...] | None = None

    def indices(self, device: torch.device) -> Tensor:
        """index_BN, or (1, N) with every token in order."""
        return torch.arange(self.grid.tokens, device=device)[None] if self.index_BN is None else self.index_BN

    def clips(self, device: torch.device) -> Tensor | None:
        """clip_1N, which clip of a packed row each token is of; None where each row is one clip."""
        if self.lengths is None:
            return None
        length_B = torch.tensor(self.lengths, device=device)
        numbers_B = torch.arange(len(self.lengths), device=device)
        return numbers_B.repeat_interleave(length_B, output_size=sum(self.lengths))[None]


def coordinates(index_BN: Tensor, grid: TokenGrid) -> tuple[Tensor, Tensor, Tensor]:
    """Each token's slice, row and column, int64 (B, N) each. Nonsense for registers: mask them yourself."""
    row_BN = index_BN.div(grid.w, rounding_mode="floor")
    return row_BN.div(grid.h, rounding_mode="floor"), row_BN % grid.h, index_BN % grid.w
