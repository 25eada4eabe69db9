"""Masking: which tokens of a clip are visible and which are hidden. Each file in this folder is one kind."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from kinemae.pretrain.model.tokens import TokenGrid


class Masking(ABC):
    """A masking kind. The counts depend on the grid (and the step) only, so shapes are static.

    Attributes:
        needs_motion: whether `split` needs the motion of the tokens, at any step.
    """

    needs_motion: bool = False

    def at(self, step: int) -> "Masking":
        """The masking of a step, the same for all clips of the step."""
        return self

    @abstractmethod
    def counts(self, grid: TokenGrid) -> tuple[int, int]:
        """(K, M): number of visible tokens and of hidden tokens that can be predicted.

        Raises:
            ValueError: one of them is 0.
        """

    @abstractmethod
    def split(
        self, grid: TokenGrid, generator: torch.Generator, motion_N: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Draw the mask of one clip.

        Args:
            generator: source of all random numbers.
            motion_N: motion of each token (`motion_energy.motion`), if `needs_motion`.

        Returns:
            visible_K ascending and hidden_M in random order, int64, disjoint. So the first hidden tokens are
            a random choice among them. Tokens in neither list are not used; `future` has such tokens.
        """


class StepMasking(Masking):
    """Base class of maskings that use one of several maskings at each step."""

    def __init__(self, maskings: Sequence[Masking]):
        self.maskings = tuple(maskings)
        self.needs_motion = any(masking.needs_motion for masking in self.maskings)

    @abstractmethod
    def at(self, step: int) -> Masking:
        """The masking of a step."""

    def counts(self, grid: TokenGrid) -> tuple[int, int]:
        """See `Masking.counts`: the counts of step 0; all maskings are checked."""
        for masking in self.maskings:
            masking.counts(grid)
        return self.at(0).counts(grid)

    def split(
        self, grid: TokenGrid, generator: torch.Generator, motion_N: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """See `Masking.split`: the masking of step 0."""
        return self.at(0).split(grid, generator, motion_N)


class RatioMasking(Masking):
    """Base class of maskings with a fixed mask ratio, rounded down, of tokens, tubes or slices."""

    def __init__(self, *, ratio: float = 0.9):
        if not 0 < ratio < 1:
            raise ValueError(f"masking.args.ratio must lie strictly between 0 and 1, got {ratio}")
        self.ratio = ratio

    def copies(self, grid: TokenGrid) -> int:
        """Tokens per drawn item: 1 for tokens, `grid.t` for tubes, `grid.per_slice` for slices."""
        return 1

    def counts(self, grid: TokenGrid) -> tuple[int, int]:
        copies = self.copies(grid)
        drawn = grid.tokens // copies
        hidden = int(self.ratio * drawn)
        if hidden < 1:
            raise ValueError(
                f"masking.args.ratio={self.ratio} leaves {copies * (drawn - hidden)} tokens visible and "
                f"{copies * hidden} hidden on a grid of {grid.t}x{grid.h}x{grid.w} tokens: both must be at "
                "least 1; change the ratio, clip.size or clip.frames"
            )
        return copies * (drawn - hidden), copies * hidden


def over_time(place_S: Tensor, grid: TokenGrid) -> Tensor:
    """The tokens at some spatial positions in all slices, slice by slice."""
    return (torch.arange(grid.t)[:, None] * grid.per_slice + place_S).flatten()


def shuffled(hidden_M: Tensor, generator: torch.Generator) -> Tensor:
    """The tokens in random order."""
    return hidden_M[torch.randperm(len(hidden_M), generator=generator)]
