"""Attention kinds: which tokens attend to which. Each file in this folder is one kind.

A kind gives each block its patterns: one attention, with its own weights, per pattern. A pattern is a rule on
the grid positions of two tokens, so it applies to any visible subset. `AttentionPattern.attention_fn` may
choose a faster backend for it; a test compares the backends with the rule.
"""

import functools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kinemae.data_tools.components import Component, build_component
from kinemae.data_tools.config import require
from kinemae.pretrain.model.attention_backends import (
    AttentionFn,
    GroupBatch,
    MaskMod,
    chunk_batches,
    dense,
    flex,
    group_batches,
    grouped,
    mask_table,
    reordered,
)
from kinemae.pretrain.model.token_positions import REGISTER, TokenPositions, coordinates
from kinemae.pretrain.model.tokens import TokenGrid

MIN_BLOCK_SPARSE = 512
"""Fewest tokens for which blocks of pairs are skipped; a shorter row has too few blocks."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Tokens:
    """Tokens of a sequence, int64 (B, N) each; B is 1 if the positions are the same for all clips.

    Attributes:
        slice_BN, row_BN, column_BN: grid coordinates; arbitrary valid ones for registers.
        clip_BN: the clip of each token, counted over all rows.
        clips: number of clips.
        is_register_BN: true for registers.
    """

    grid: TokenGrid
    slice_BN: Tensor
    row_BN: Tensor
    column_BN: Tensor
    clip_BN: Tensor
    clips: int
    is_register_BN: Tensor

    @classmethod
    def at(cls, positions: TokenPositions, device: torch.device) -> "Tokens":
        """The tokens at these positions."""
        index_BN = positions.indices(device)
        slice_BN, row_BN, column_BN = coordinates(index_BN.clamp(min=0), positions.grid)
        clip_BN = positions.clips(device)
        if clip_BN is None:
            clip_BN = torch.arange(len(index_BN), device=device)[:, None].expand_as(index_BN)
        return cls(
            grid=positions.grid,
            slice_BN=slice_BN,
            row_BN=row_BN,
            column_BN=column_BN,
            clip_BN=clip_BN,
            clips=len(index_BN) if positions.lengths is None else len(positions.lengths),
            is_register_BN=index_BN == REGISTER,
        )

    def reordered(self, order_BN: Tensor) -> "Tokens":
        """The same tokens in another order."""
        names = ("slice_BN", "row_BN", "column_BN", "clip_BN", "is_register_BN")
        return replace(self, **{name: getattr(self, name).gather(1, order_BN) for name in names})

    @property
    def shape(self) -> tuple[int, int]:
        """(B, N)."""
        rows, count = self.slice_BN.shape
        return rows, count

    @property
    def place_BN(self) -> Tensor:
        """Spatial index of each token within its slice."""
        return self.row_BN * self.grid.w + self.column_BN


class AttentionPattern(ABC):
    """Pairs of tokens that attend to each other; equal patterns share an `AttentionFn`.

    Patterns are frozen dataclasses, so equal settings compare equal.
    """

    @abstractmethod
    def pair_mask(self, tokens: Tokens) -> MaskMod:
        """The mask between grid tokens of one clip. Each token attends to itself."""

    @abstractmethod
    def sort_key(self, tokens: Tokens) -> Tensor:
        """Sort keys, int64 (B, N) from 0 and below the grid's tokens, close for tokens that attend to each
        other.

        Sorted by them, the allowed pairs fall into few blocks. Registers' keys are ignored.
        """

    def mask_mod(self, tokens: Tokens) -> MaskMod:
        """The complete mask: `pair_mask`, between registers and their clip, never between clips."""
        pair_mask = self.pair_mask(tokens)
        clip_BN, is_register_BN = tokens.clip_BN, tokens.is_register_BN

        def mask_mod(row: Tensor, query: Tensor, key: Tensor) -> Tensor:
            has_register = is_register_BN[row, query] | is_register_BN[row, key]
            return (pair_mask(row, query, key) | has_register) & (clip_BN[row, query] == clip_BN[row, key])

        return mask_mod

    def allowed(self, tokens: Tokens) -> Tensor:
        """The complete mask for all pairs, as allowed_BNN, query by key."""
        return mask_table(self.mask_mod(tokens), *tokens.shape, tokens.slice_BN.device)

    def attention_fn(self, positions: TokenPositions, device: torch.device) -> AttentionFn:
        """The attention function for a forward pass, by the backend that suits the device and the length."""
        if device.type == "cpu" and positions.index_BN is None and positions.grid.tokens >= MIN_BLOCK_SPARSE:
            return grouped(_full_clip_batches_on(self, positions.grid, device), 1, device)
        tokens = Tokens.at(positions, device)
        if tokens.shape[1] < MIN_BLOCK_SPARSE:
            return dense(self.allowed(tokens))
        if device.type == "cuda":
            return self.block_sparse(tokens)
        return grouped(self.batches(tokens), tokens.shape[0], device)

    def batches(self, tokens: Tokens) -> list[GroupBatch]:
        """Batches of queries with the keys that they need, from tokens on the CPU."""
        return chunk_batches(self.allowed(tokens), self._order(tokens))

    def block_sparse(self, tokens: Tokens) -> AttentionFn:
        """FlexAttention with a block mask, for a GPU."""
        order_BN = self._order(tokens)
        mask_mod = self.mask_mod(tokens.reordered(order_BN))
        return reordered(flex(mask_mod, *tokens.shape, order_BN.device), order_BN)

    def _order(self, tokens: Tokens) -> Tensor:
        """Tokens sorted by clip, then registers first, then by sort key, as order_BN."""
        key_BN = self.sort_key(tokens).masked_fill(tokens.is_register_BN, -1) + 1
        return (tokens.clip_BN * (tokens.grid.tokens + 1) + key_BN).argsort(dim=1, stable=True)


@functools.lru_cache(maxsize=8)
def _full_clip_batches(pattern: AttentionPattern, grid: TokenGrid) -> list[GroupBatch]:
    """Cached, since building them takes as long as using them in a small model."""
    with torch.inference_mode(False):  # a tensor made in inference mode could not be used in training
        return pattern.batches(Tokens.at(TokenPositions(grid=grid), torch.device("cpu")))


@functools.lru_cache(maxsize=8)
def _full_clip_batches_on(
    pattern: AttentionPattern, grid: TokenGrid, device: torch.device
) -> list[GroupBatch]:
    """Cached, since a copy to a GPU in each step would wait for it."""
    with torch.inference_mode(False):
        return [batch.to(device) for batch in _full_clip_batches(pattern, grid)]


class GroupPattern(AttentionPattern):
    """A pattern of disjoint groups: tokens attend to those with the same `sort_key`."""

    def pair_mask(self, tokens: Tokens) -> MaskMod:
        group_BN = self.sort_key(tokens)
        return lambda row, query, key: group_BN[row, query] == group_BN[row, key]

    def attention_fn(self, positions: TokenPositions, device: torch.device) -> AttentionFn:
        """Attention group by group, at the cost of the sum of the squared group sizes.

        The group sizes must be known on the CPU. On a GPU they are only for full clips; for other positions
        the host would have to wait for the device, so the backends of `AttentionPattern` are used.
        """
        if positions.index_BN is None:
            return grouped(_full_clip_batches_on(self, positions.grid, device), 1, device)
        if device.type == "cuda":
            return super().attention_fn(positions, device)
        tokens = Tokens.at(positions, device)
        return grouped(self.batches(tokens), tokens.shape[0], device)

    def batches(self, tokens: Tokens) -> list[GroupBatch]:
        """See `AttentionPattern.batches`: one or a few batches of groups."""
        return group_batches(self.sort_key(tokens), tokens.clip_BN, tokens.is_register_BN, clips=tokens.clips)


class AttentionKind(ABC):
    """An attention kind: the patterns of each block."""

    @abstractmethod
    def patterns(self, block: int) -> tuple[AttentionPattern, ...]:
        """The patterns of a block's attentions, in sequence; as many for each block, counted from 0."""


class AttentionCache(dict[AttentionPattern, AttentionFn]):
    """The attention functions of one forward pass, each built at its first use."""

    def __init__(self, positions: TokenPositions, device: torch.device):
        super().__init__()
        self._positions = positions
        self._device = device

    def __missing__(self, pattern: AttentionPattern) -> AttentionFn:
        self[pattern] = pattern.attention_fn(self._positions, self._device)
        return self[pattern]


def build_attention(component: Component, *, key: str = "model.attention") -> AttentionKind:
    """Build the attention kind of a config.

    Args:
        key: config key of the kind, for error messages.

    Raises:
        ValueError: unknown kind, or invalid arguments.
    """
    try:
        return build_component("kinemae.pretrain.model.attention", component, AttentionKind, key=key)
    except ValueError as error:
        # A kind is the same for the encoder and the decoder, so it cannot name the config key.
        raise ValueError(str(error).replace("model.attention.", f"{key}.", 1)) from None


def check_window(window: Sequence[int]) -> tuple[int, int, int]:
    """Check that a window is three whole numbers of at least 1.

    Raises:
        ValueError: it is not.
    """
    is_right = isinstance(window, Sequence) and len(window) == 3
    is_right = is_right and all(type(side) is int and side >= 1 for side in window)
    require(
        is_right,
        "model.attention.args.window",
        "be three whole numbers of at least 1 (slices, rows and columns of tokens)",
        window,
    )
    return (window[0], window[1], window[2])
