"""Sparse attention: the neighbourhood in space and time, and the same place's history."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kinemae.data_tools.config import require
from kinemae.pretrain.model.attention.base import AttentionKind, Relation, Tokens, check_window
from kinemae.pretrain.model.attention_backends import Rule
from kinemae.pretrain.model.tokens import TokenGrid

DEFAULT = (3, 3, 3)


@dataclass(frozen=True)
class NearOrSamePlace(Relation):
    """A token sees those around it, and tokens at its own place in slices further away.

    Attributes:
        reach: how many slices, rows and columns away the neighbourhood ends.
        stride: see every `stride`-th slice of the own place, before and after; None for `nearest`.
        nearest: see this many slices of the own place, those with a token there that are nearest in
            time; of two equally near ones the earlier first.
    """

    reach: tuple[int, int, int]
    stride: int | None
    nearest: int | None

    def sees(self, tokens: Tokens) -> Rule:
        """See `Relation.sees`."""
        slice_BN, row_BN, column_BN = tokens.slice_BN, tokens.row_BN, tokens.column_BN
        place_BN = tokens.place_BN
        slices, rows, columns = self.reach
        history_BNt = self._history(tokens)

        def sees(row: Tensor, query: Tensor, key: Tensor) -> Tensor:
            is_near = (slice_BN[row, query] - slice_BN[row, key]).abs() <= slices
            is_near = is_near & ((row_BN[row, query] - row_BN[row, key]).abs() <= rows)
            is_near = is_near & ((column_BN[row, query] - column_BN[row, key]).abs() <= columns)
            is_same_place = place_BN[row, query] == place_BN[row, key]
            return is_near | (is_same_place & history_BNt[row, query, slice_BN[row, key]])

        return sees

    def near(self, tokens: Tokens) -> Tensor:
        """See `Relation.near`. Place after place: slice after slice, the history would touch every block."""
        return tokens.place_BN * tokens.grid.t + tokens.slice_BN

    def _history(self, tokens: Tokens) -> Tensor:
        """Which slices of its own place each token sees, boolean (B, N, t)."""
        if self.nearest is not None:
            return _nearest(tokens, self.nearest)
        assert self.stride is not None
        slice_t = torch.arange(tokens.grid.t, device=tokens.slice_BN.device)
        return (tokens.slice_BN[..., None] - slice_t) % self.stride == 0


def _nearest(tokens: Tokens, count: int) -> Tensor:
    order_tt, rank_tt = _by_distance(tokens.grid, tokens.slice_BN.device)
    present_BNt = _present(tokens)
    # For each token its place's slices from near to far, and how many of them have a token so far.
    order_BNt = order_tt[tokens.slice_BN]
    so_far_BNt = present_BNt.gather(2, order_BNt).long().cumsum(dim=2)
    # The first is the token's own slice, which it sees in any case.
    return (so_far_BNt <= count + 1).gather(2, rank_tt[tokens.slice_BN])


def _by_distance(grid: TokenGrid, device: torch.device) -> tuple[Tensor, Tensor]:
    """For each slice: all slices from near to far, and each slice's rank among them."""
    slice_t = torch.arange(grid.t, device=device)
    difference_tt = slice_t[None, :] - slice_t[:, None]
    order_tt = (2 * difference_tt.abs() + (difference_tt > 0)).argsort(dim=1)
    return order_tt, order_tt.argsort(dim=1)


def _present(tokens: Tokens) -> Tensor:
    """In which slices there is a token at each token's place, boolean (B, N, t)."""
    grid, clip_BN = tokens.grid, tokens.clip_BN
    nowhere = grid.per_slice
    place_BN = tokens.place_BN.masked_fill(tokens.is_register_BN, nowhere)
    shape = (tokens.clips, grid.per_slice + 1, grid.t)
    has_token = torch.zeros(shape, dtype=torch.bool, device=clip_BN.device)
    has_token[clip_BN, place_BN, tokens.slice_BN] = True
    return has_token[clip_BN, place_BN]


class SparseAttention(AttentionKind):
    """One attention a block: a neighbourhood, and the history of the token's own place.

    So what was there earlier and later is one step away, however long the clip is.

    Args:
        window: slices, rows and columns of the neighbourhood, odd: the token stands in its middle.
        stride: see every `stride`-th slice of the own place; all of them where neither this nor top_k is set.
        top_k: instead, see so many slices of the own place: those nearest in time that have a token there.
    """

    def __init__(
        self, *, window: Sequence[int] = DEFAULT, stride: int | None = None, top_k: int | None = None
    ):
        sides = check_window(window)
        require(all(side % 2 for side in sides), "model.attention.args.window", "hold odd numbers", window)
        _check_count(stride, "stride")
        _check_count(top_k, "top_k")
        require(
            stride is None or top_k is None,
            "model.attention.args.top_k",
            "be null where stride is set",
            top_k,
        )
        self.reach = (sides[0] // 2, sides[1] // 2, sides[2] // 2)
        self.stride = stride or (1 if top_k is None else None)
        self.top_k = top_k

    def relations(self, block: int) -> tuple[Relation, ...]:
        """See `AttentionKind.relations`."""
        return (NearOrSamePlace(self.reach, stride=self.stride, nearest=self.top_k),)


def _check_count(count: int | None, name: str) -> None:
    is_right = count is None or (type(count) is int and count >= 1)
    require(is_right, f"model.attention.args.{name}", "be null or a whole number of at least 1", count)
