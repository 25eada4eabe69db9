"""Attention kinds: which tokens look at which. One file here is one kind.

A kind gives each block its relations, one attention (with weights of its own) for each. A relation says of
any two tokens whether the first looks at the second, by their places alone, so it holds on any visible
subset. That rule is the truth; `Relation.look` may do the same faster, and a test compares the two.
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
    Job,
    Look,
    Rule,
    blockwise,
    chunk_jobs,
    dense,
    group_jobs,
    grouped,
    in_order,
    table,
)
from kinemae.pretrain.model.token_positions import REGISTER, Places, coordinates
from kinemae.pretrain.model.tokens import TokenGrid

BLOCKS_PAY_FROM = 512
"""Tokens from which on blocks of pairs are skipped; a shorter row is only a few blocks wide."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Tokens:
    """The tokens of a sequence, int64 (B, N) each; B is 1 where all clips' tokens stand alike.

    Attributes:
        slice_BN, row_BN, column_BN: where they stand in the grid; nonsense inside it for registers.
        clip_BN: which clip they are of, counted through all rows.
        clips: how many clips those are.
        is_register_BN: which of them stand nowhere.
    """

    grid: TokenGrid
    slice_BN: Tensor
    row_BN: Tensor
    column_BN: Tensor
    clip_BN: Tensor
    clips: int
    is_register_BN: Tensor

    @classmethod
    def at(cls, places: Places, device: torch.device) -> "Tokens":
        """The tokens at these places."""
        index_BN = places.indices(device)
        slice_BN, row_BN, column_BN = coordinates(index_BN.clamp(min=0), places.grid)
        clip_BN = places.clips(device)
        if clip_BN is None:
            clip_BN = torch.arange(len(index_BN), device=device)[:, None].expand_as(index_BN)
        return cls(
            grid=places.grid,
            slice_BN=slice_BN,
            row_BN=row_BN,
            column_BN=column_BN,
            clip_BN=clip_BN,
            clips=len(index_BN) if places.lengths is None else len(places.lengths),
            is_register_BN=index_BN == REGISTER,
        )

    def taken(self, order_BN: Tensor) -> "Tokens":
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
        """The number of a token's place in its slice."""
        return self.row_BN * self.grid.w + self.column_BN


class Relation(ABC):
    """Who looks at whom. Equal relations (frozen dataclasses) share one `Look` in a forward pass."""

    @abstractmethod
    def sees(self, tokens: Tokens) -> Rule:
        """Which of these tokens look at which, registers and other clips aside. Each sees itself."""

    @abstractmethod
    def near(self, tokens: Tokens) -> Tensor:
        """Numbers, int64 (B, N) from 0 and below the grid's tokens, alike for tokens that see one another.

        In their order the work falls into few blocks. Registers' are not looked at.
        """

    def rule(self, tokens: Tokens) -> Rule:
        """The whole truth: registers see and are seen by all of their clip, and nobody sees another clip."""
        sees = self.sees(tokens)
        clip_BN, is_register_BN = tokens.clip_BN, tokens.is_register_BN

        def rule(row: Tensor, query: Tensor, key: Tensor) -> Tensor:
            free = is_register_BN[row, query] | is_register_BN[row, key]
            return (sees(row, query, key) | free) & (clip_BN[row, query] == clip_BN[row, key])

        return rule

    def allowed(self, places: Places, device: torch.device) -> Tensor:
        """The rule written out, allowed_BNN, query by key."""
        return self._table(Tokens.at(places, device))

    def look(self, places: Places, device: torch.device) -> Look:
        """A way to attend under this relation, made once for all blocks of a forward pass."""
        if device.type == "cpu" and places.index_BN is None and places.grid.tokens >= BLOCKS_PAY_FROM:
            return grouped(_whole_clip_in_chunks(self, places.grid), 1)
        tokens = Tokens.at(places, device)
        if tokens.shape[1] < BLOCKS_PAY_FROM:
            return dense(self._table(tokens))
        return self.look_blockwise(tokens) if device.type == "cuda" else self.look_in_chunks(tokens)

    def look_in_chunks(self, tokens: Tokens) -> Look:
        """Attend chunk by chunk to those keys that any of a chunk looks at; for the CPU."""
        return grouped(self.chunks(tokens), tokens.shape[0])

    def chunks(self, tokens: Tokens) -> list[Job]:
        """The jobs of `look_in_chunks`."""
        return chunk_jobs(self._table(tokens), self._order(tokens))

    def look_blockwise(self, tokens: Tokens) -> Look:
        """Attend by FlexAttention's block masks; for a GPU."""
        order_BN = self._order(tokens)
        ordered = tokens.taken(order_BN)
        return in_order(blockwise(self.rule(ordered), *tokens.shape, order_BN.device), order_BN)

    def _table(self, tokens: Tokens) -> Tensor:
        return table(self.rule(tokens), *tokens.shape, tokens.slice_BN.device)

    def _order(self, tokens: Tokens) -> Tensor:
        """Clip after clip, in each the registers first, as order_BN."""
        near_BN = self.near(tokens).masked_fill(tokens.is_register_BN, -1) + 1
        return (tokens.clip_BN * (tokens.grid.tokens + 1) + near_BN).argsort(dim=1, stable=True)


@functools.lru_cache(maxsize=8)
def _whole_clip_in_chunks(relation: Relation, grid: TokenGrid) -> list[Job]:
    """Kept, since making them takes as long as using them in a small model."""
    with torch.inference_mode(False):  # a tensor made in inference mode could not be used in training
        return relation.chunks(Tokens.at(Places(grid=grid), torch.device("cpu")))


class Partition(Relation):
    """A relation in which tokens fall into groups, and see their own group: those with the same `near`."""

    def sees(self, tokens: Tokens) -> Rule:
        """See `Relation.sees`."""
        group_BN = self.near(tokens)
        return lambda row, query, key: group_BN[row, query] == group_BN[row, key]

    def look(self, places: Places, device: torch.device) -> Look:
        """Group by group, so that it costs the sum of the groups' squares.

        The groups' sizes must be known on the CPU. On a GPU they are for a whole clip in order, by the grid
        alone; for other places it would have to be waited for, and `Relation.look`'s ways are taken.
        """
        if device.type == "cuda" and places.index_BN is not None:
            return super().look(places, device)
        tokens = Tokens.at(places, torch.device("cpu") if places.index_BN is None else device)
        jobs = group_jobs(self.near(tokens), tokens.clip_BN, tokens.is_register_BN, clips=tokens.clips)
        return grouped([job.on(device) for job in jobs], tokens.shape[0])


class AttentionKind(ABC):
    """A kind of attention: the relations of each block."""

    @abstractmethod
    def relations(self, block: int) -> tuple[Relation, ...]:
        """The attentions of a block, done one after another; `block` counts from 0. Always equally many."""


class Looks(dict[Relation, Look]):
    """The looks of one forward pass, each made when it is first asked for."""

    def __init__(self, places: Places, device: torch.device):
        super().__init__()
        self._places = places
        self._device = device

    def __missing__(self, relation: Relation) -> Look:
        self[relation] = relation.look(self._places, self._device)
        return self[relation]


def build_attention(component: Component, *, key: str = "model.attention") -> AttentionKind:
    """Build the kind that a config names under `key`.

    Raises:
        ValueError: no such kind, or arguments it refuses.
    """
    try:
        return build_component("kinemae.pretrain.model.attention", component, AttentionKind, key=key)
    except ValueError as error:
        # A kind cannot know whether it stands in the encoder or in the decoder.
        raise ValueError(str(error).replace("model.attention.", f"{key}.", 1)) from None


def check_window(window: Sequence[int]) -> tuple[int, int, int]:
    """The window as it is used.

    Raises:
        ValueError: it is not three whole numbers of at least 1.
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
