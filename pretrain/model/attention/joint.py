"""Joint attention: every token attends to all tokens of its clip (arXiv 2203.12602).

PyTorch's scaled_dot_product_attention selects the kernel, for example FlashAttention.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from kinemae.pretrain.model.attention.base import MIN_BLOCK_SPARSE, AttentionKind, AttentionPattern, Tokens
from kinemae.pretrain.model.attention_backends import AttentionFn, MaskMod, per_clip
from kinemae.pretrain.model.token_positions import TokenPositions


@dataclass(frozen=True)
class AllTokens(AttentionPattern):
    """All tokens of a clip attend to each other."""

    def pair_mask(self, tokens: Tokens) -> MaskMod:
        return lambda row, query, key: query == query

    def sort_key(self, tokens: Tokens) -> Tensor:
        return torch.zeros_like(tokens.slice_BN)

    def attention_fn(self, positions: TokenPositions, device: torch.device) -> AttentionFn:
        """Attention without a mask; packed clips one by one, long packed rows on a GPU by FlexAttention."""
        if positions.lengths is None:
            return F.scaled_dot_product_attention
        if device.type == "cuda" and sum(positions.lengths) >= MIN_BLOCK_SPARSE:
            return self.block_sparse(Tokens.at(positions, device))
        return per_clip(positions.lengths)


class JointAttention(AttentionKind):
    """One attention per block, among all tokens."""

    def patterns(self, block: int) -> tuple[AttentionPattern, ...]:
        return (AllTokens(),)
