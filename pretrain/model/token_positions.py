"""Grid positions of the tokens of a sequence, used by position embeddings, attention and packing."""

from dataclasses import dataclass

import torch
from torch import Tensor

from kinemae.pretrain.model.tokens import TokenGrid

REGISTER = -1
"""Index of a register token. Registers attend to, and are attended by, all tokens of their clip."""


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenPositions:
    """Grid index of each token of a sequence.

    Attributes:
        grid: the tokens of a full clip.
        index_BN: int64 grid indices, or REGISTER. None: all tokens of the grid in order.
        lengths: None: each row is one clip. Otherwise a single row holds clips of these lengths (registers
            included) one after another, and attention does not cross clips.
    """

    grid: TokenGrid
    index_BN: Tensor | None = None
    lengths: tuple[int, ...] | None = None

    def indices(self, device: torch.device) -> Tensor:
        """index_BN, or (1, N) with all tokens in order."""
        return torch.arange(self.grid.tokens, device=device)[None] if self.index_BN is None else self.index_BN

    def clips(self, device: torch.device) -> Tensor | None:
        """clip_1N, the clip of each token in a packed row; None if each row is one clip."""
        if self.lengths is None:
            return None
        length_B = torch.tensor(self.lengths, device=device)
        numbers_B = torch.arange(len(self.lengths), device=device)
        return numbers_B.repeat_interleave(length_B, output_size=sum(self.lengths))[None]


def coordinates(index_BN: Tensor, grid: TokenGrid) -> tuple[Tensor, Tensor, Tensor]:
    """Slice, row and column of each token, int64 (B, N) each; undefined for registers."""
    row_BN = index_BN.div(grid.w, rounding_mode="floor")
    return row_BN.div(grid.h, rounding_mode="floor"), row_BN % grid.h, index_BN % grid.w
