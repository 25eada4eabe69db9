"""Divided attention: over time, then over space (TimeSformer, arXiv 2102.05095)."""

from dataclasses import dataclass

from torch import Tensor

from kinemae.pretrain.model.attention.base import AttentionKind, AttentionPattern, GroupPattern, Tokens


@dataclass(frozen=True)
class SamePlace(GroupPattern):
    """Attention over time: among the tokens of one spatial position."""

    def sort_key(self, tokens: Tokens) -> Tensor:
        return tokens.place_BN


@dataclass(frozen=True)
class SameSlice(GroupPattern):
    """Attention over space: among the tokens of one time slice."""

    def sort_key(self, tokens: Tokens) -> Tensor:
        return tokens.slice_BN


class DividedAttention(AttentionKind):
    """Two attentions per block, over time and over space, each with its own weights.

    TimeSformer (section 3 of the paper) starts from an image model: it initializes the output of the temporal
    attention to zero and adds a linear layer after it. Here both attentions are built and initialized alike.
    The second attention adds about a third to the parameters of a block.
    """

    def patterns(self, block: int) -> tuple[AttentionPattern, ...]:
        return SamePlace(), SameSlice()
