"""Learned position embedding with a vector per token."""

import torch
from torch import Tensor, nn

from kinemae.pretrain.model.positions.base import Positions, resampled
from kinemae.pretrain.model.tokens import TokenGrid


class LearnedJointPositions(Positions):
    """Adds a learned vector per token of the grid, as InternVideo2 does (arXiv 2403.15377).

    The table has the size of the reference grid. On another grid it is interpolated linearly along each axis
    at each use, as in `LearnedPositions`.
    """

    along_time: Tensor
    along_rows: Tensor
    along_columns: Tensor

    def __init__(self, *, width: int, heads: int, grid: TokenGrid, reference: TokenGrid):
        super().__init__(width=width, heads=heads, grid=grid, reference=reference)
        self.table = nn.Parameter(torch.empty(1, reference.tokens, width))
        nn.init.trunc_normal_(self.table, std=0.02)
        self.register_blends()

    def forward(self, index_BN: Tensor | None) -> Tensor:
        table_ND = self.table[0]
        if self.grid != self.reference:
            table_thwD = table_ND.unflatten(0, (self.reference.t, self.reference.h, self.reference.w))
            for dim, blend in enumerate((self.along_time, self.along_rows, self.along_columns)):
                table_thwD = resampled(table_thwD.transpose(0, dim), blend).transpose(0, dim)
            table_ND = table_thwD.flatten(0, 2)
        return table_ND if index_BN is None else table_ND[index_BN]
