"""Masking: which tokens of a clip are seen and which are hidden. One file here is one way to choose."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from data_tools.randomness import generator
from pretrain.model.tokens import TokenGrid


class Masking(ABC):
    """A way to choose. How many are seen depends on the grid alone, so that shapes stay as they are."""

    @abstractmethod
    def counts(self, grid: TokenGrid) -> tuple[int, int]:
        """(K, M): how many tokens are visible and hidden.

        Raises:
            ValueError: none would be visible, or none hidden.
        """

    @abstractmethod
    def split(self, grid: TokenGrid, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Choose for one clip.

        Args:
            generator: the clip's own; all chance comes from it.

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


def wanted_count(hidden: int, predict_share: float) -> int:
    """How many of the hidden tokens are predicted: the share of them, rounded, at least one."""
    return max(1, round(hidden * predict_share))


@dataclass(frozen=True, kw_only=True)
class TokenSplit:
    """The loader's `annotate`: gives a clip the index lists "visible" and "wanted".

    Attributes:
        seed: the run's seed. The split is a function of it and the clip's place in the run.
        predict_share: config key `model.predict_share`.
    """

    masking: Masking
    grid: TokenGrid
    seed: int
    predict_share: float = 1.0

    def __call__(self, luma_THW: Tensor, clip_index: int) -> dict[str, Tensor]:
        """Choose for one clip."""
        chance = generator(self.seed, purpose="masking", sample=clip_index)
        visible_K, hidden_M = self.masking.split(self.grid, chance)
        return {"visible": visible_K, "wanted": hidden_M[: wanted_count(len(hidden_M), self.predict_share)]}
