"""Position embeddings. Each file in this folder is one kind.

An embedding is built for a grid and for the reference grid of pretraining. If they differ, the reference is
resampled: token i of n has the coordinate (i + 0.5) * reference / n - 0.5.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from kinemae.data_tools.components import Component, build_component
from kinemae.pretrain.model.tokens import TokenGrid

Rotate = Callable[[Tensor], Tensor]
"""Rotation of queries or keys, (B, A, N, F), by the positions of their tokens."""


class Positions(nn.Module):
    """Base class; built with `width`, `heads`, `grid`, `reference` and the arguments of the kind.

    Attributes:
        grid: the tokens of a full clip.
        reference: the grid of pretraining; the shapes of parameters depend on this grid only.
    """

    def __init__(self, *, width: int, heads: int, grid: TokenGrid, reference: TokenGrid):
        super().__init__()
        self.width = width
        self.heads = heads
        self.grid = grid
        self.reference = reference

    def forward(self, index_BN: Tensor | None) -> Tensor | None:
        """Vectors to add to the tokens: positions_BND, or (N, D) for all tokens in order (`index_BN` None).

        None if nothing is added. Indices are never REGISTER.
        """
        raise NotImplementedError

    def rotation(self, index_BN: Tensor) -> Rotate | None:
        """Rotation of queries and keys; None if there is none. REGISTER tokens are not rotated."""
        return None

    def axes(self) -> tuple[Tensor, Tensor, Tensor]:
        """Coordinates in the reference grid of the slices (t,), rows (h,) and columns (w,), in float64."""
        own, theirs = self.grid, self.reference
        return axis(own.t, theirs.t), axis(own.h, theirs.h), axis(own.w, theirs.w)

    def blends(self) -> tuple[Tensor, Tensor, Tensor]:
        """Linear interpolation weights for slices, rows and columns, float64 of shape (grid, reference).

        Coordinates beyond the reference take its outermost value.
        """
        lengths = (self.reference.t, self.reference.h, self.reference.w)
        time, rows, columns = (_blend(*pair) for pair in zip(self.axes(), lengths, strict=True))
        return time, rows, columns

    def register_rotation(self, angle_NF: Tensor, rest: int) -> None:
        """Store cosine and sine of angles as buffers cos_NF and sin_NF.

        Args:
            rest: number of further columns without rotation.
        """
        # An extra last row without rotation, selected by REGISTER (-1).
        angle_NF = nn.functional.pad(angle_NF, (0, rest, 0, 1))
        self.register_buffer("cos_NF", angle_NF.cos().float(), persistent=False)
        self.register_buffer("sin_NF", angle_NF.sin().float(), persistent=False)

    def register_blends(self) -> None:
        """Store `blends` as buffers along_time, along_rows and along_columns."""
        for name, blend in zip(("time", "rows", "columns"), self.blends(), strict=True):
            self.register_buffer(f"along_{name}", blend.float(), persistent=False)


def axis(length: int, reference: int) -> Tensor:
    """Coordinates of an axis's tokens in the reference grid, float64 of shape (length,)."""
    coordinate = torch.arange(length, dtype=torch.float64)
    # Exact whole numbers if nothing is resampled.
    return coordinate if length == reference else (coordinate + 0.5) * reference / length - 0.5


def _blend(coordinate: Tensor, length: int) -> Tensor:
    """Weights of linear interpolation: max(0, 1 - distance)."""
    nearest = coordinate.clamp(0, length - 1)
    distance = nearest[:, None] - torch.arange(length, dtype=torch.float64)
    return (1 - distance.abs()).clamp(min=0)


def resampled(table: Tensor, blend: Tensor) -> Tensor:
    """Resample a table along its first dimension. No matmul, since autocast would round it to bfloat16."""
    return (blend[(...,) + (None,) * (table.dim() - 1)] * table).sum(dim=1)


def build_positions(
    component: Component, *, width: int, heads: int, grid: TokenGrid, reference: TokenGrid
) -> Positions:
    """Build the position embedding of a config.

    Raises:
        ValueError: unknown kind, or invalid arguments.
    """
    given = {"width": width, "heads": heads, "grid": grid, "reference": reference}
    wrong = sorted(component.args.keys() & given.keys())
    if wrong:
        raise ValueError(f"model.positions.args.{wrong[0]} comes from the model: remove it from the config")
    complete = Component(name=component.name, args={**component.args, **given})
    return build_component("kinemae.pretrain.model.positions", complete, Positions, key="model.positions")
