"""Joint attention: every token looks at every token of its clip (arXiv 2203.12602)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from kinemae.pretrain.model.attention.base import BLOCKS_PAY_FROM, AttentionKind, Relation, Tokens
from kinemae.pretrain.model.attention_backends import Look, Rule, split_into
from kinemae.pretrain.model.token_positions import Places


@dataclass(frozen=True)
class Everything(Relation):
    """All tokens of a clip see one another."""

    def sees(self, tokens: Tokens) -> Rule:
        """See `Relation.sees`."""

        def sees(row: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return query == query

        return sees

    def near(self, tokens: Tokens) -> Tensor:
        """See `Relation.near`."""
        return torch.zeros_like(tokens.slice_BN)

    def look(self, places: Places, device: torch.device) -> Look:
        """Without a mask: clip by clip where they are packed, but for long rows on a GPU."""
        if places.lengths is None:
            return F.scaled_dot_product_attention
        if device.type == "cuda" and sum(places.lengths) >= BLOCKS_PAY_FROM:
            return self.look_blockwise(Tokens.at(places, device))
        return split_into(places.lengths)


class JointAttention(AttentionKind):
    """One attention a block, among all tokens."""

    def relations(self, block: int) -> tuple[Relation, ...]:
        """See `AttentionKind.relations`."""
        return (Everything(),)
