"""Windowed attention: inside boxes of slices, rows and columns (arXiv 2106.13230)."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from kinemae.pretrain.model.attention.base import AttentionKind, Partition, Relation, Tokens, check_window

DEFAULT = (4, 7, 7)


@dataclass(frozen=True)
class SameWindow(Partition):
    """Tokens in one box see one another.

    Shifted boxes begin half a box later, and what is before the first and after the last whole box is a
    smaller one. Along an axis that a box spans wholly nothing is shifted, since that would only cut it.
    """

    window: tuple[int, int, int]
    is_shifted: bool

    def near(self, tokens: Tokens) -> Tensor:
        """See `Relation.near`."""
        grid = tokens.grid
        group_BN = tokens.slice_BN.new_zeros(())
        axes = zip(
            (tokens.slice_BN, tokens.row_BN, tokens.column_BN),
            (grid.t, grid.h, grid.w),
            self.window,
            strict=True,
        )
        for place_BN, length, side in axes:
            # Counted from the begin of the box that the axis begins in.
            before = side - side // 2 if self.is_shifted and 1 < side < length else 0
            boxes = (before + length - 1) // side + 1
            group_BN = group_BN * boxes + (place_BN + before).div(side, rounding_mode="floor")
        return group_BN


class WindowedAttention(AttentionKind):
    """One attention a block, inside windows; every second block's are shifted, which joins neighbours.

    Windows go by the places of the tokens that are there. So unlike in Swin nothing is padded, and shifted
    windows at the clip's edges are smaller rather than wrapped around and masked, which is the same.

    Args:
        window: slices, rows and columns of tokens in a window; an axis that is shorter is one window.
        shifted: shift the windows of odd blocks by half a window.
    """

    def __init__(self, *, window: Sequence[int] = DEFAULT, shifted: bool = True):
        self.window = check_window(window)
        self.shifted = shifted

    def relations(self, block: int) -> tuple[Relation, ...]:
        """See `AttentionKind.relations`."""
        return (SameWindow(self.window, is_shifted=self.shifted and block % 2 == 1),)
