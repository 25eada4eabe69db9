"""Where a token stands: fixed sine-cosine positions, separable over time, rows and columns."""

import torch
from torch import Tensor

from pretrain.model.tokens import TokenGrid


def sine_positions(grid: TokenGrid, width: int) -> Tensor:
    """A table of positions_ND, float32.

    The channels are split over the axes in the order (t, h, w). Rows and columns get 2 * (width // 6)
    channels each, time the rest: thirds where 6 divides the width, a few more for time elsewhere. Within
    an axis of n channels come n / 2 sines, then n / 2 cosines of coordinate / 10000^(i / (n / 2)).
    VideoMAE takes the sine of the token's flat number instead, in which a step down, and a step to the
    right at a row's end, look unrelated; separable positions also carry over to other grids.
    """
    spatial = 2 * (width // 6)
    widths = (width - 2 * spatial, spatial, spatial)
    # Float64: in float32 the angle of a late token is off in the fourth digit.
    axes = [torch.arange(length, dtype=torch.float64) for length in (grid.t, grid.h, grid.w)]
    coordinates = torch.meshgrid(*axes, indexing="ij")
    parts = [_waves(place.flatten(), channels) for place, channels in zip(coordinates, widths, strict=True)]
    return torch.cat(parts, dim=1).float()


def _waves(place_N: Tensor, channels: int) -> Tensor:
    half = channels // 2
    frequency_D = 10000.0 ** (-torch.arange(half, dtype=torch.float64) / half)
    angle_ND = place_N[:, None] * frequency_D
    return torch.cat([angle_ND.sin(), angle_ND.cos()], dim=1)
