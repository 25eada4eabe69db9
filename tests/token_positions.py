"""Grids and token sequences for tests of attention and position embeddings."""

import random

import pytest
import torch

from kinemae.pretrain.model.token_positions import REGISTER, TokenPositions
from kinemae.pretrain.model.tokens import TokenGrid

CPU = torch.device("cpu")
GRIDS = [TokenGrid(4, 3, 5), TokenGrid(1, 4, 4), TokenGrid(7, 1, 1), TokenGrid(1, 1, 1)]
grids = pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: f"{grid.t}x{grid.h}x{grid.w}")
LAYOUTS = ["every", "subset", "registers", "twice", "packed"]
layouts = pytest.mark.parametrize("layout", LAYOUTS)


def positions_of(layout, grid, seed=0):
    """Full clips, random subsets, with registers, with a position twice, and packed clips."""
    chance = random.Random(seed)
    rows = [chance.sample(range(grid.tokens), (grid.tokens + 1) // 2) for _ in range(3)]
    if layout == "every":
        return TokenPositions(grid=grid)
    if layout == "registers":
        rows = [[REGISTER, REGISTER, *row] for row in rows]
    if layout == "twice":
        rows = [[*row, row[-1], row[0]] for row in rows]
    if layout == "packed":
        rows = [[REGISTER, *row[at * len(row) // 4 :]] for at, row in enumerate(rows)]
        packed = torch.tensor([[index for row in rows for index in row]])
        return TokenPositions(grid=grid, index_BN=packed, lengths=tuple(len(row) for row in rows))
    return TokenPositions(grid=grid, index_BN=torch.tensor(rows))
