"""Positions: how a token says where it stands. One file here is one way.

A way is built for a grid and for the reference grid, the one its model was pretrained on. Where the two
differ, the reference is resampled: token i of n stands at (i + 0.5) * reference / n - 0.5 of it.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from kinemae.data_tools.components import Component, build_component
from kinemae.pretrain.model.tokens import TokenGrid

Rotate = Callable[[Tensor], Tensor]
"""Queries or keys of shape (B, A, N, F) to the same, turned by their tokens' places."""


class Positions(nn.Module):
    """A way is built with `width`, `heads`, `grid`, `reference` and its own arguments.

    Attributes:
        grid: the tokens of a full clip.
        reference: the grid that the model was pretrained on; parameters depend on this one alone.
    """

    def __init__(self, *, width: int, heads: int, grid: TokenGrid, reference: TokenGrid):
        super().__init__()
        self.width = width
        self.heads = heads
        self.grid = grid
        self.reference = reference

    def forward(self, index_BN: Tensor | None) -> Tensor | None:
        """What is added to the tokens: positions_BND, or (N, D) for None, every token in order.

        None where nothing is added. Indices are never REGISTER.
        """
        raise NotImplementedError

    def rotation(self, index_BN: Tensor) -> Rotate | None:
        """How queries and keys are turned; None where they are not. REGISTER tokens stay as they are."""
        return None

    def axes(self) -> tuple[Tensor, Tensor, Tensor]:
        """Coordinates in the reference grid of the slices (t,), rows (h,) and columns (w,), in float64."""
        own, theirs = self.grid, self.reference
        return axis(own.t, theirs.t), axis(own.h, theirs.h), axis(own.w, theirs.w)

    def blends(self) -> tuple[Tensor, Tensor, Tensor]:
        """For slices, rows and columns, how each blends its neighbours in the reference: float64 (own, its).

        Linear; beyond the outermost of the reference, that one alone.
        """
        lengths = (self.reference.t, self.reference.h, self.reference.w)
        time, rows, columns = (_blend(*pair) for pair in zip(self.axes(), lengths, strict=True))
        return time, rows, columns


def axis(length: int, reference: int) -> Tensor:
    """Coordinates of an axis's tokens in the reference grid, float64 of shape (length,)."""
    place = torch.arange(length, dtype=torch.float64)
    # Untouched where nothing is resampled: exactly whole numbers.
    return place if length == reference else (place + 0.5) * reference / length - 0.5


def _blend(place: Tensor, length: int) -> Tensor:
    """Weights of linear interpolation: one minus the distance, where that is less than one."""
    nearest = place.clamp(0, length - 1)
    distance = nearest[:, None] - torch.arange(length, dtype=torch.float64)
    return (1 - distance.abs()).clamp(min=0)


def build_positions(
    component: Component, *, width: int, heads: int, grid: TokenGrid, reference: TokenGrid
) -> Positions:
    """Build the way of telling positions that a config names.

    Raises:
        ValueError: no such way, or arguments it refuses.
    """
    given = {"width": width, "heads": heads, "grid": grid, "reference": reference}
    wrong = sorted(component.args.keys() & given.keys())
    if wrong:
        raise ValueError(f"model.positions.args.{wrong[0]} comes from the model: remove it from the config")
    complete = Component(name=component.name, args={**component.args, **given})
    return build_component("kinemae.pretrain.model.positions", complete, Positions, key="model.positions")
