"""Windowed attention: within windows of slices, rows and columns (Video Swin, arXiv 2106.13230)."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from kinemae.pretrain.model.attention.base import (
    AttentionKind,
    AttentionPattern,
    GroupPattern,
    Tokens,
    check_window,
)


@dataclass(frozen=True)
class SameWindow(GroupPattern):
    """Attention among the tokens of one window.

    Shifted windows start half a window later; the windows at both ends are then smaller. An axis that fits
    into one window is not shifted.
    """

    window: tuple[int, int, int]
    is_shifted: bool

    def sort_key(self, tokens: Tokens) -> Tensor:
        grid = tokens.grid
        group_BN = tokens.slice_BN.new_zeros(())
        axes = zip(
            (tokens.slice_BN, tokens.row_BN, tokens.column_BN),
            (grid.t, grid.h, grid.w),
            self.window,
            strict=True,
        )
        for place_BN, length, side in axes:
            # Offset of the axis within its first window.
            before = side - side // 2 if self.is_shifted and 1 < side < length else 0
            windows = (before + length - 1) // side + 1
            group_BN = group_BN * windows + (place_BN + before).div(side, rounding_mode="floor")
        return group_BN


class WindowedAttention(AttentionKind):
    """One attention per block, within windows that are shifted in every second block.

    Windows apply to the grid positions of the visible tokens. Unlike in Swin nothing is padded, and shifted
    windows at the clip's edges are smaller, which equals Swin's cyclic shift with a mask.

    Args:
        window: slices, rows and columns of a window, in tokens; a shorter axis is one window.
        shifted: shift the windows of odd blocks by half a window.
    """

    def __init__(self, *, window: Sequence[int] = (4, 7, 7), shifted: bool = True):
        self.window = check_window(window)
        self.shifted = shifted

    def patterns(self, block: int) -> tuple[AttentionPattern, ...]:
        return (SameWindow(self.window, is_shifted=self.shifted and block % 2 == 1),)
