"""Fewer tokens a clip: the most worthy of each, or clips of different lengths in one row.

A packed row costs what its tokens cost and no padding; attention keeps its clips apart
(`TokenPositions.lengths`).
"""

from dataclasses import dataclass

import torch
from torch import Tensor


def kept_count(count: int, share: float) -> int:
    """A share of some tokens, rounded, at least one."""
    return max(1, round(count * share))


def top_tokens(score_BN: Tensor, count: int) -> Tensor:
    """Each clip's tokens of the highest score, index_BK ascending; of equal ones the first."""
    order_BN = score_BN.argsort(dim=1, descending=True, stable=True)
    return order_BN[:, :count].sort(dim=1).values


@dataclass(frozen=True, kw_only=True, eq=False)
class Packing:
    """Which token of which clip each of the L tokens of a packed row is, clip after clip.

    Attributes:
        clip_1L, index_1L: int64, the clip's number in the batch and the token's in the grid.
        lengths: tokens of each clip.
    """

    clip_1L: Tensor
    index_1L: Tensor
    lengths: tuple[int, ...]

    @classmethod
    def of(cls, is_kept_BN: Tensor, score_BN: Tensor) -> "Packing":
        """Pack the kept tokens; a clip that would have none keeps its token of the highest score.

        On a GPU this waits for the lengths, which the host has to know.
        """
        best_BN = torch.zeros_like(is_kept_BN).scatter(1, top_tokens(score_BN, 1), True)
        is_kept_BN = torch.where(is_kept_BN.any(dim=1, keepdim=True), is_kept_BN, best_BN)
        clip_L, index_L = is_kept_BN.nonzero(as_tuple=True)
        lengths = tuple(is_kept_BN.sum(dim=1).tolist())
        return cls(clip_1L=clip_L[None], index_1L=index_L[None], lengths=lengths)

    def pack(self, x_BND: Tensor) -> Tensor:
        """Those of the clips' values, one for each token of the grid, that belong to the row's tokens."""
        return x_BND[self.clip_1L, self.index_1L]

    def unpack(self, x_1LD: Tensor) -> tuple[Tensor, Tensor]:
        """The row cut into clips, as x_BMD with zeros behind the shorter ones, and weight_BM in float32.

        The weight is 1 for a token and 0 for such a zero; M is the longest clip's length.
        """
        length_B1 = torch.tensor(self.lengths, device=x_1LD.device)[:, None]
        is_token_BM = torch.arange(max(self.lengths), device=x_1LD.device) < length_B1
        x_BMD = x_1LD.new_zeros(*is_token_BM.shape, x_1LD.shape[2])
        return x_BMD.masked_scatter(is_token_BM[..., None], x_1LD), is_token_BM.float()
