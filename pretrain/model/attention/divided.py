"""Divided attention: through time at one place, then through the place's slice (arXiv 2102.05095)."""

from dataclasses import dataclass

from torch import Tensor

from kinemae.pretrain.model.attention.base import AttentionKind, Partition, Relation, Tokens


@dataclass(frozen=True)
class SamePlace(Partition):
    """Tokens at one place see one another, through all slices."""

    def near(self, tokens: Tokens) -> Tensor:
        """See `Relation.near`."""
        return tokens.place_BN


@dataclass(frozen=True)
class SameSlice(Partition):
    """Tokens of one slice see one another."""

    def near(self, tokens: Tokens) -> Tensor:
        """See `Relation.near`."""
        return tokens.slice_BN


class DividedAttention(AttentionKind):
    """Two attentions a block, first through time, then through space, each with weights of its own.

    TimeSformer (section 3 of the paper) starts from an image model and therefore sets the temporal
    attention's output to zero, and it has one more linear layer after it. Here both attentions start from
    scratch, so they begin alike and are built alike. Blocks have about a third more parameters for it.
    """

    def relations(self, block: int) -> tuple[Relation, ...]:
        """See `AttentionKind.relations`."""
        return SamePlace(), SameSlice()
