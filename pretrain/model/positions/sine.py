"""Fixed sine-cosine positions, separable over time, rows and columns."""

import torch
from torch import Tensor

from kinemae.pretrain.model.positions.base import Positions
from kinemae.pretrain.model.tokens import TokenGrid


class SinePositions(Positions):
    """Adds sines and cosines of the three coordinates.

    The channels are split over the axes in the order (t, h, w): rows and columns get 2 * (width // 6)
    channels each, time the rest. An axis of n channels has n / 2 sines, then n / 2 cosines of
    coordinate / 10000^(i / (n / 2)). Unlike VideoMAE's `flat_sine`, which uses the flat token index,
    separable positions apply to other grids without interpolation.
    """

    table_ND: Tensor

    def __init__(self, *, width: int, heads: int, grid: TokenGrid, reference: TokenGrid):
        super().__init__(width=width, heads=heads, grid=grid, reference=reference)
        spatial = 2 * (width // 6)
        widths = (width - 2 * spatial, spatial, spatial)
        coordinates = torch.meshgrid(*self.axes(), indexing="ij")
        parts = [waves(x.flatten(), channels) for x, channels in zip(coordinates, widths, strict=True)]
        self.register_buffer("table_ND", torch.cat(parts, dim=1).float(), persistent=False)

    def forward(self, index_BN: Tensor | None) -> Tensor:
        return self.table_ND if index_BN is None else self.table_ND[index_BN]


def waves(coordinate_N: Tensor, channels: int) -> Tensor:
    """Sines, then cosines of float64 coordinates, as (N, channels)."""
    half = channels // 2
    # Float64: in float32 the angle of a late token is off in the fourth digit.
    frequency_D = 10000.0 ** (-torch.arange(half, dtype=torch.float64, device=coordinate_N.device) / half)
    angle_ND = coordinate_N[:, None] * frequency_D
    return torch.cat([angle_ND.sin(), angle_ND.cos()], dim=1)
