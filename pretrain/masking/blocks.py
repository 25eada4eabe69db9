"""Block masking: rectangles are hidden in all time slices (V-JEPA, arXiv 2404.08471)."""

from collections.abc import Sequence
from math import sqrt

import torch
from torch import Tensor

from kinemae.data_tools.config import require
from kinemae.pretrain.masking.base import RatioMasking, over_time, shuffled
from kinemae.pretrain.model.tokens import TokenGrid

ASPECTS = (0.75, 1.5)
"""Range of height over width of a block, drawn uniformly; V-JEPA's."""


class BlockMasking(RatioMasking):
    """Hides the union of rectangular blocks of spatial positions in all time slices.

    A clip draws one of `scales`, then blocks of that size until enough positions are hidden; the last block
    is cut. So the number of hidden tokens is fixed. V-JEPA fixes the number of blocks (8 short-range or 2
    long-range ones), cuts a batch to its shortest list, and uses each clip twice, with either kind of blocks;
    here a clip has one of them.

    Args:
        ratio: fraction of a slice's positions to hide, rounded down.
        scales: fraction of a slice that a block covers, one drawn per clip: 0.15 is V-JEPA's short-range
            block, 0.7 its long-range one.
    """

    def __init__(self, *, ratio: float = 0.9, scales: Sequence[float] = (0.15, 0.7)):
        super().__init__(ratio=ratio)
        is_list = isinstance(scales, Sequence) and not isinstance(scales, str) and len(scales) > 0
        require(
            is_list and all(isinstance(scale, float) and 0 < scale < 1 for scale in scales),
            "masking.args.scales",
            "be a list of fractions strictly between 0 and 1",
            scales,
        )
        self.scales = tuple(scales)

    def copies(self, grid: TokenGrid) -> int:
        return grid.t

    def split(
        self, grid: TokenGrid, generator: torch.Generator, motion_N: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        count = self.counts(grid)[1] // grid.t
        scale = self.scales[int(torch.randint(len(self.scales), (), generator=generator))]
        hidden: set[int] = set()
        while len(hidden) < count:
            # Four numbers from one call: this loop runs in loader workers, dozens of times per clip.
            uniform = torch.rand(4, generator=generator, dtype=torch.float64).tolist()
            fresh = [place for place in _block(grid, scale, uniform) if place not in hidden]
            hidden.update(fresh[: count - len(hidden)])
        is_hidden_S = torch.zeros(grid.per_slice, dtype=torch.bool)
        is_hidden_S[list(hidden)] = True
        hidden_M = shuffled(over_time(is_hidden_S.nonzero()[:, 0], grid), generator)
        return over_time((~is_hidden_S).nonzero()[:, 0], grid), hidden_M


def _block(grid: TokenGrid, scale: float, uniform: list[float]) -> list[int]:
    """The spatial positions of a block, ordered from a random side; the last ones are cut first.

    Args:
        uniform: four values in [0, 1), for shape, top, left and side.
    """
    area = max(1, int(scale * grid.per_slice))
    aspect = ASPECTS[0] + uniform[0] * (ASPECTS[1] - ASPECTS[0])
    height = min(max(1, round(sqrt(area * aspect))), grid.h)
    width = min(max(1, round(sqrt(area / aspect))), grid.w)
    top = int(uniform[1] * (grid.h - height + 1))
    left = int(uniform[2] * (grid.w - width + 1))
    rows, columns = range(top, top + height), range(left, left + width)
    side = int(4 * uniform[3])
    if side % 2:
        rows, columns = rows[::-1], columns[::-1]
    if side < 2:
        return [row * grid.w + column for row in rows for column in columns]
    return [row * grid.w + column for column in columns for row in rows]
