"""Token reduction: the highest-scored tokens of each clip, or clips of different lengths packed into one row.

Packing needs no padding; attention stays within each clip (`TokenPositions.lengths`).
"""

from dataclasses import dataclass

import torch
from torch import Tensor


def kept_count(count: int, fraction: float) -> int:
    """Number of tokens in a fraction of `count`, rounded, at least one."""
    return max(1, round(count * fraction))


def top_tokens(score_BN: Tensor, count: int) -> Tensor:
    """Indices of each clip's highest-scored tokens, index_BK ascending; of equal scores the first."""
    order_BN = score_BN.argsort(dim=1, descending=True, stable=True)
    return order_BN[:, :count].sort(dim=1).values


@dataclass(frozen=True, kw_only=True, eq=False)
class Packing:
    """Clip and grid index of each of the L tokens of a packed row, clip after clip.

    Attributes:
        clip_1L, index_1L: int64, index of the clip in the batch and of the token in the grid.
        lengths: number of tokens of each clip.
    """

    clip_1L: Tensor
    index_1L: Tensor
    lengths: tuple[int, ...]

    @classmethod
    def of(cls, is_kept_BN: Tensor, score_BN: Tensor) -> "Packing":
        """Pack the kept tokens; a clip without any keeps its highest-scored token.

        On a GPU this synchronizes with the host, which needs the lengths.
        """
        best_BN = torch.zeros_like(is_kept_BN).scatter(1, top_tokens(score_BN, 1), True)
        is_kept_BN = torch.where(is_kept_BN.any(dim=1, keepdim=True), is_kept_BN, best_BN)
        clip_L, index_L = is_kept_BN.nonzero(as_tuple=True)
        lengths = tuple(is_kept_BN.sum(dim=1).tolist())
        return cls(clip_1L=clip_L[None], index_1L=index_L[None], lengths=lengths)

    def pack(self, x_BND: Tensor) -> Tensor:
        """Gather the values of the packed tokens from values of all grid tokens."""
        return x_BND[self.clip_1L, self.index_1L]

    def unpack(self, x_1LD: Tensor) -> tuple[Tensor, Tensor]:
        """Split the row into clips, as x_BMD padded with zeros, and weight_BM in float32.

        The weight is 1 for tokens and 0 for padding; M is the length of the longest clip.
        """
        length_B1 = torch.tensor(self.lengths, device=x_1LD.device)[:, None]
        is_token_BM = torch.arange(max(self.lengths), device=x_1LD.device) < length_B1
        x_BMD = x_1LD.new_zeros(*is_token_BM.shape, x_1LD.shape[2])
        return x_BMD.masked_scatter(is_token_BM[..., None], x_1LD), is_token_BM.float()
