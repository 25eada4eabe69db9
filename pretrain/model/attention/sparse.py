"""Sparse attention: a neighbourhood in space and time, and other slices at the same spatial position."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kinemae.data_tools.config import require
from kinemae.pretrain.model.attention.base import AttentionKind, AttentionPattern, Tokens, check_window
from kinemae.pretrain.model.attention_backends import MaskMod
from kinemae.pretrain.model.tokens import TokenGrid


@dataclass(frozen=True)
class NearOrSamePlace(AttentionPattern):
    """A token attends to its neighbourhood and to tokens of other slices at its spatial position.

    Attributes:
        reach: radius of the neighbourhood in slices, rows and columns.
        stride: attend to every `stride`-th slice at the same position; None if `nearest` is set.
        nearest: attend to this many slices at the same position: those with a visible token that are nearest
            in time, the earlier of two equally near ones first.
    """

    reach: tuple[int, int, int]
    stride: int | None
    nearest: int | None

    def pair_mask(self, tokens: Tokens) -> MaskMod:
        slice_BN, row_BN, column_BN = tokens.slice_BN, tokens.row_BN, tokens.column_BN
        place_BN = tokens.place_BN
        slices, rows, columns = self.reach
        history_BNt = self._history(tokens)

        def pair_mask(row: Tensor, query: Tensor, key: Tensor) -> Tensor:
            is_near = (slice_BN[row, query] - slice_BN[row, key]).abs() <= slices
            is_near = is_near & ((row_BN[row, query] - row_BN[row, key]).abs() <= rows)
            is_near = is_near & ((column_BN[row, query] - column_BN[row, key]).abs() <= columns)
            is_same_place = place_BN[row, query] == place_BN[row, key]
            return is_near | (is_same_place & history_BNt[row, query, slice_BN[row, key]])

        return pair_mask

    def sort_key(self, tokens: Tokens) -> Tensor:
        """Position, then slice: in the reverse order a token's slices would touch all blocks."""
        return tokens.place_BN * tokens.grid.t + tokens.slice_BN

    def _history(self, tokens: Tokens) -> Tensor:
        """The slices at its position that each token attends to, boolean (B, N, t)."""
        if self.nearest is not None:
            return _nearest(tokens, self.nearest)
        assert self.stride is not None
        slice_t = torch.arange(tokens.grid.t, device=tokens.slice_BN.device)
        return (tokens.slice_BN[..., None] - slice_t) % self.stride == 0


def _nearest(tokens: Tokens, count: int) -> Tensor:
    order_tt, rank_tt = _by_distance(tokens.grid, tokens.slice_BN.device)
    present_BNt = _present(tokens)
    # For each token: slices from near to far, and the running count of visible tokens there.
    order_BNt = order_tt[tokens.slice_BN]
    so_far_BNt = present_BNt.gather(2, order_BNt).long().cumsum(dim=2)
    # The first is the token's own slice, which is always included.
    return (so_far_BNt <= count + 1).gather(2, rank_tt[tokens.slice_BN])


def _by_distance(grid: TokenGrid, device: torch.device) -> tuple[Tensor, Tensor]:
    """For each slice: all slices from near to far, and each slice's rank among them."""
    slice_t = torch.arange(grid.t, device=device)
    difference_tt = slice_t[None, :] - slice_t[:, None]
    order_tt = (2 * difference_tt.abs() + (difference_tt > 0)).argsort(dim=1)
    return order_tt, order_tt.argsort(dim=1)


def _present(tokens: Tokens) -> Tensor:
    """The slices with a visible token at each token's position, boolean (B, N, t)."""
    grid, clip_BN = tokens.grid, tokens.clip_BN
    place_BN = tokens.place_BN.masked_fill(tokens.is_register_BN, grid.per_slice)
    shape = (tokens.clips, grid.per_slice + 1, grid.t)
    has_token = torch.zeros(shape, dtype=torch.bool, device=clip_BN.device)
    has_token[clip_BN, place_BN, tokens.slice_BN] = True
    return has_token[clip_BN, place_BN]


class SparseAttention(AttentionKind):
    """One attention per block: a neighbourhood, and other slices at the token's spatial position.

    Args:
        window: slices, rows and columns of the neighbourhood, odd numbers; the token is its centre.
        stride: attend to every `stride`-th slice at the same position; all slices if stride and top_k are
            null.
        top_k: instead of `stride`: the number of slices, nearest in time, that have a visible token there.
    """

    def __init__(
        self, *, window: Sequence[int] = (3, 3, 3), stride: int | None = None, top_k: int | None = None
    ):
        sides = check_window(window)
        require(all(side % 2 for side in sides), "model.attention.args.window", "hold odd numbers", window)
        _check_count(stride, "stride")
        _check_count(top_k, "top_k")
        require(
            stride is None or top_k is None,
            "model.attention.args.top_k",
            "be null if stride is set",
            top_k,
        )
        self.reach = (sides[0] // 2, sides[1] // 2, sides[2] // 2)
        self.stride = stride or (1 if top_k is None else None)
        self.top_k = top_k

    def patterns(self, block: int) -> tuple[AttentionPattern, ...]:
        return (NearOrSamePlace(self.reach, stride=self.stride, nearest=self.top_k),)


def _check_count(count: int | None, name: str) -> None:
    is_right = count is None or (type(count) is int and count >= 1)
    require(is_right, f"model.attention.args.{name}", "be null or a whole number of at least 1", count)
