"""Block masking: rectangles are hidden through the whole clip (V-JEPA, arXiv 2404.08471)."""

from collections.abc import Sequence
from math import sqrt

import torch
from torch import Tensor

from kinemae.data_tools.config import require
from kinemae.pretrain.masking.base import Masking, check_ratio, over_time, split_counts
from kinemae.pretrain.model.tokens import TokenGrid

ASPECTS = (0.75, 1.5)
"""Height over width of the blocks, drawn evenly between the two; V-JEPA's."""


class BlockMasking(Masking):
    """Hides the union of rectangular blocks of places, in every time slice.

    A clip takes one of `scales` and draws blocks of that size until enough is hidden; of the last one only
    as many rows or columns as are missing. So the number of hidden tokens is fixed, where V-JEPA fixes the
    number of blocks (8 short-range or 2 long-range ones) and cuts a batch to its shortest list. V-JEPA
    shows each clip twice, once with each kind; here a clip has one of them.

    Args:
        ratio: share of a slice's places to hide, rounded down.
        scales: share of a slice that a block covers, one drawn for each clip: 0.15 is V-JEPA's short-range
            block, 0.7 its long-range one.
    """

    def __init__(self, *, ratio: float = 0.9, scales: Sequence[float] = (0.15, 0.7)):
        check_ratio(ratio)
        is_list = isinstance(scales, Sequence) and not isinstance(scales, str) and len(scales) > 0
        require(
            is_list and all(isinstance(scale, float) and 0 < scale < 1 for scale in scales),
            "masking.args.scales",
            "be a list of shares strictly between 0 and 1",
            scales,
        )
        self.ratio = ratio
        self.scales = tuple(scales)

    def counts(self, grid: TokenGrid) -> tuple[int, int]:
        """See `Masking.counts`."""
        return split_counts(self.ratio, grid, copies=grid.t)

    def split(
        self, grid: TokenGrid, generator: torch.Generator, motion_N: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """See `Masking.split`."""
        count = self.counts(grid)[1] // grid.t
        scale = self.scales[int(torch.randint(len(self.scales), (), generator=generator))]
        hidden: set[int] = set()
        while len(hidden) < count:
            # Four numbers from one call: this loop runs in the loader's workers, dozens of times a clip.
            chance = torch.rand(4, generator=generator, dtype=torch.float64).tolist()
            block = _block(grid, scale, chance)
            fresh = [place for place in block if place not in hidden]
            hidden.update(fresh[: count - len(hidden)])
        is_hidden_S = torch.zeros(grid.per_slice, dtype=torch.bool)
        is_hidden_S[list(hidden)] = True
        hidden_M = over_time(is_hidden_S.nonzero()[:, 0], grid)
        order_M = torch.randperm(len(hidden_M), generator=generator)
        return over_time((~is_hidden_S).nonzero()[:, 0], grid), hidden_M[order_M]


def _block(grid: TokenGrid, scale: float, chance: list[float]) -> list[int]:
    """The places of a block, rows or columns in order from a side drawn at random: the last are cut first.

    Args:
        chance: four uniform values in [0, 1), for shape, top, left and side.
    """
    area = max(1, int(scale * grid.per_slice))
    aspect = ASPECTS[0] + chance[0] * (ASPECTS[1] - ASPECTS[0])
    height = min(max(1, round(sqrt(area * aspect))), grid.h)
    width = min(max(1, round(sqrt(area / aspect))), grid.w)
    top = int(chance[1] * (grid.h - height + 1))
    left = int(chance[2] * (grid.w - width + 1))
    rows, columns = range(top, top + height), range(left, left + width)
    side = int(4 * chance[3])
    if side % 2:
        rows, columns = rows[::-1], columns[::-1]
    if side < 2:
        return [row * grid.w + column for row in rows for column in columns]
    return [row * grid.w + column for column in columns for row in rows]
