"""Masking: which tokens of a clip are seen and which are hidden. One file here is one way to choose."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from kinemae.pretrain.model.tokens import TokenGrid


class Masking(ABC):
    """A way to choose. How many are seen depends on the grid (and the step) alone: shapes stay as they are.

    Attributes:
        needs_motion: `split` wants to be told what moves.
    """

    needs_motion: bool = False

    def at(self, step: int) -> "Masking":
        """The masking of a step, where it differs from step to step; all clips of a step share it."""
        return self

    @abstractmethod
    def counts(self, grid: TokenGrid) -> tuple[int, int]:
        """(K, M): how many tokens are visible and hidden.

        Raises:
            ValueError: none would be visible, or none hidden.
        """

    @abstractmethod
    def split(
        self, grid: TokenGrid, generator: torch.Generator, motion_N: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Choose for one clip.

        Args:
            generator: the clip's own; all chance comes from it.
            motion_N: how much each token moves (`content.motion`); given where `needs_motion`.

        Returns:
            visible_K ascending and hidden_M in random order, int64, together all tokens of the grid; so the
            first few of the hidden ones are a random choice among them.
        """


def check_ratio(ratio: float) -> None:
    """Refuse a ratio that hides nothing or everything on any grid.

    Raises:
        ValueError: it is not strictly between 0 and 1.
    """
    if not 0 < ratio < 1:
        raise ValueError(f"masking.args.ratio must lie strictly between 0 and 1, got {ratio}")


def check_split(visible: int, hidden: int, *, ratio: float, grid: TokenGrid) -> None:
    """Refuse a split that leaves nothing to see or nothing to predict.

    Raises:
        ValueError: one side of the split is empty.
    """
    if visible < 1 or hidden < 1:
        raise ValueError(
            f"masking.args.ratio={ratio} leaves {visible} tokens visible and {hidden} hidden on a grid of "
            f"{grid.t}x{grid.h}x{grid.w} tokens: both must be at least 1; "
            "change the ratio, clip.size or clip.frames"
        )


def split_counts(ratio: float, grid: TokenGrid, *, copies: int = 1) -> tuple[int, int]:
    """(K, M): the visible and the hidden tokens where a share of what is drawn is hidden, rounded down.

    Args:
        copies: how many tokens each thing drawn stands for: 1 for tokens, `grid.t` for places through the
            whole clip, `grid.per_slice` for slices.

    Raises:
        ValueError: see `check_split`.
    """
    drawn = grid.tokens // copies
    hidden = int(ratio * drawn)
    check_split(copies * (drawn - hidden), copies * hidden, ratio=ratio, grid=grid)
    return copies * (drawn - hidden), copies * hidden


def over_time(place_S: Tensor, grid: TokenGrid) -> Tensor:
    """The tokens of some places in every slice of the grid, slice after slice."""
    return (torch.arange(grid.t)[:, None] * grid.per_slice + place_S).flatten()
