"""Rotary position embedding in three dimensions."""

import torch
from torch import Tensor

from kinemae.data_tools.config import require
from kinemae.pretrain.model.positions.base import Positions, Rotate
from kinemae.pretrain.model.tokens import TokenGrid


class RotaryPositions(Positions):
    """Rotates pairs of a head's channels by slice, row and column (arXiv 2104.09864, 2506.09985).

    Each axis gets a third of the pairs; up to two remaining pairs are not rotated. Channel i is paired with
    channel i + F / 2. Pair i of an axis with n pairs is rotated by coordinate / theta^(i / n).

    Args:
        theta: base of the frequencies; the longest wavelength is 2 * pi * theta^((n - 1) / n) tokens.
    """

    cos_NF: Tensor
    sin_NF: Tensor

    def __init__(
        self, *, width: int, heads: int, grid: TokenGrid, reference: TokenGrid, theta: float = 10000.0
    ):
        super().__init__(width=width, heads=heads, grid=grid, reference=reference)
        head_width = width // heads
        require(theta > 1, "model.positions.args.theta", "be above 1", theta)
        if head_width % 2 or head_width < 6:
            raise ValueError(
                "model.positions=rotary needs heads of an even width of at least 6, a pair of channels for "
                f"each axis, got {head_width}: change model.heads or model.width (or the decoder's)"
            )
        pairs = head_width // 2
        each = pairs // 3
        frequency_E = theta ** (-torch.arange(each, dtype=torch.float64) / each)
        coordinates = torch.meshgrid(*self.axes(), indexing="ij")
        angle_NF = torch.cat([x.flatten()[:, None] * frequency_E for x in coordinates], dim=1)
        self.register_rotation(angle_NF, pairs - 3 * each)

    def forward(self, index_BN: Tensor | None) -> None:
        """See `Positions.forward`: nothing is added."""

    def rotation(self, index_BN: Tensor) -> Rotate:
        """See `Positions.rotation`. Computed in float32: bfloat16 rounds angles too coarsely."""
        cos_B1NF, sin_B1NF = self.cos_NF[index_BN].unsqueeze(1), self.sin_NF[index_BN].unsqueeze(1)

        def rotate(x_BANF: Tensor) -> Tensor:
            one, other = x_BANF.float().chunk(2, dim=3)
            rotated = [one * cos_B1NF - other * sin_B1NF, other * cos_B1NF + one * sin_B1NF]
            return torch.cat(rotated, dim=3).to(x_BANF.dtype)

        return rotate
