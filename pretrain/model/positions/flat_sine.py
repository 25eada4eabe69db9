"""VideoMAE's fixed positions: a sinusoid over the flat token index."""

import torch
from torch import Tensor

from kinemae.pretrain.model.positions.base import Positions
from kinemae.pretrain.model.tokens import TokenGrid


class FlatSinePositions(Positions):
    """Adds the sinusoid of arXiv 1706.03762, section 3.5, over the token index in (t, h, w) order.

    For weights of VideoMAE and VideoMAE V2. Channel j of token n is the sine (j even) or the cosine (j odd)
    of n / 10000^(2 * (j // 2) / width). On another grid than the reference the table is interpolated linearly
    along each axis.
    """

    table_ND: Tensor

    def __init__(self, *, width: int, heads: int, grid: TokenGrid, reference: TokenGrid):
        super().__init__(width=width, heads=heads, grid=grid, reference=reference)
        table_ND = _sinusoid(reference.tokens, width)
        if grid != reference:
            # In float64, so that only the result is rounded.
            table_thwD = table_ND.unflatten(0, (reference.t, reference.h, reference.w))
            table_ND = torch.einsum("xt,yh,zw,thwD->xyzD", *self.blends(), table_thwD).flatten(0, 2)
        self.register_buffer("table_ND", table_ND.float(), persistent=False)

    def forward(self, index_BN: Tensor | None) -> Tensor:
        return self.table_ND if index_BN is None else self.table_ND[index_BN]


def _sinusoid(tokens: int, width: int) -> Tensor:
    """VideoMAE's table in float64, as (N, D)."""
    pair_D = torch.arange(width, dtype=torch.float64) // 2
    place_N1 = torch.arange(tokens, dtype=torch.float64)[:, None]
    angle_ND = place_N1 / torch.pow(10000.0, 2 * pair_D / width)
    return torch.stack([angle_ND[:, 0::2].sin(), angle_ND[:, 1::2].cos()], dim=2).flatten(1)
