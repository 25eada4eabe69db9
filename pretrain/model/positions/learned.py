"""Learned position embedding, separable over time and space."""

import torch
from torch import Tensor, nn

from kinemae.pretrain.model.positions.base import Positions, resampled
from kinemae.pretrain.model.tokens import TokenGrid


class LearnedPositions(Positions):
    """Adds a learned vector per slice and one per spatial position (arXiv 2205.09113, section 3.1).

    Both tables have the size of the reference grid. On another grid they are interpolated at each use,
    linearly in time and bilinearly in space, so they remain trainable and the file format does not change.
    """

    along_time: Tensor
    along_rows: Tensor
    along_columns: Tensor

    def __init__(self, *, width: int, heads: int, grid: TokenGrid, reference: TokenGrid):
        super().__init__(width=width, heads=heads, grid=grid, reference=reference)
        self.temporal = nn.Parameter(torch.empty(1, reference.t, width))
        self.spatial = nn.Parameter(torch.empty(1, reference.per_slice, width))
        for table in (self.temporal, self.spatial):
            nn.init.trunc_normal_(table, std=0.02)
        self.register_blends()

    def forward(self, index_BN: Tensor | None) -> Tensor:
        temporal_tD, spatial_SD = self._tables()
        # Sum first: gathering from the two small tables would accumulate many gradients in few rows.
        table_ND = (temporal_tD[:, None] + spatial_SD).flatten(0, 1)
        return table_ND if index_BN is None else table_ND[index_BN]

    def _tables(self) -> tuple[Tensor, Tensor]:
        if self.grid == self.reference:
            return self.temporal[0], self.spatial[0]
        places_hwD = self.spatial[0].unflatten(0, (self.reference.h, self.reference.w))
        rows_hwD = resampled(places_hwD, self.along_rows)
        columns_whD = resampled(rows_hwD.transpose(0, 1), self.along_columns)
        return resampled(self.temporal[0], self.along_time), columns_whD.transpose(0, 1).flatten(0, 1)
