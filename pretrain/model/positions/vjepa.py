"""Rotary position embedding of V-JEPA 2 and 2.1."""

import torch
from torch import Tensor

from kinemae.data_tools.config import require
from kinemae.pretrain.model.positions.base import Positions, Rotate
from kinemae.pretrain.model.tokens import TokenGrid

_THETA = 10000.0


class VJepaPositions(Positions):
    """Rotates neighbouring channels 2i and 2i + 1 of a head by slice, row and column (arXiv 2506.09985).

    Each axis has 2n = 2 * (head width // 6) channels and the frequencies theta^(-i / n); remaining channels
    are not rotated. The position is the index of the token in its own grid: positions of another grid than
    the reference are not resampled.

    Args:
        tiled: channel j of an axis has the frequency j mod n, so the two channels of a pair have different
            angles and the result is no rotation. The weights of V-JEPA 2 need this. False: channel j has the
            frequency j // 2, as in V-JEPA 2.1.
        side: rows and columns are scaled to the range of a grid of this side, 16 in V-JEPA 2.1; null: not
            scaled.
    """

    cos_NF: Tensor
    sin_NF: Tensor

    def __init__(
        self,
        *,
        width: int,
        heads: int,
        grid: TokenGrid,
        reference: TokenGrid,
        tiled: bool = True,
        side: int | None = None,
    ):
        super().__init__(width=width, heads=heads, grid=grid, reference=reference)
        head_width = width // heads
        if head_width < 6:
            raise ValueError(
                "model.positions=vjepa: expected heads of a width of at least 6, a pair of channels for each "
                f"axis, got {head_width}; fix: change model.heads or model.width (or the decoder's)"
            )
        require(side is None or side >= 2, "model.positions.args.side", "be null or at least 2", side)
        each = head_width // 6
        frequency_E = _THETA ** (-torch.arange(each, dtype=torch.float64) / each)
        frequency_C = frequency_E.repeat(2) if tiled else frequency_E.repeat_interleave(2)
        axes = [torch.arange(length, dtype=torch.float64) for length in (grid.t, grid.h, grid.w)]
        if side is not None:
            axes[1:] = [axis * ((side - 1) / max(1, len(axis) - 1)) for axis in axes[1:]]
        coordinates = torch.meshgrid(*axes, indexing="ij")
        angle_NF = torch.cat([x.flatten()[:, None] * frequency_C for x in coordinates], dim=1)
        self.register_rotation(angle_NF, head_width - 6 * each)

    def forward(self, index_BN: Tensor | None) -> None:
        """See `Positions.forward`: nothing is added."""

    def rotation(self, index_BN: Tensor) -> Rotate:
        """See `Positions.rotation`. Computed in float32: bfloat16 rounds angles too coarsely."""
        cos_B1NF, sin_B1NF = self.cos_NF[index_BN].unsqueeze(1), self.sin_NF[index_BN].unsqueeze(1)

        def rotate(x_BANF: Tensor) -> Tensor:
            x = x_BANF.float()
            even, odd = x[..., 0::2], x[..., 1::2]
            turned = torch.stack([-odd, even], dim=4).flatten(3)
            return (x * cos_B1NF + turned * sin_B1NF).to(x_BANF.dtype)

        return rotate
