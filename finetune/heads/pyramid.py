"""Pyramid head: an anchor-free detector of segments over several temporal resolutions, after ActionFormer."""

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from kinemae.data_tools.config import require
from kinemae.data_tools.randomness import ClipRandom
from kinemae.finetune.heads.base import Features, Head
from kinemae.finetune.layers.slice_features import SlicePool, hidden_width_of, time_block

_PRIOR = 0.01  # initial probability of every class, as in the focal loss's paper (arXiv 1708.02002)
GEOMETRY = 4  # values per position besides the class scores


class PyramidHead(Head):
    """ActionFormer (arXiv 2202.07925) on the slices of a clip.

    Level l has positions of 2 ** l slices each. The output is a tensor (B, P, outputs + 4): the positions of
    all levels, level 0 first. The values of a position are

        class logits        `outputs` values, independent of each other
        distance to start   0 or more
        distance to end     0 or more
        centre              of the position
        size                of the position

    All times are fractions of the clip: 0 is the start of the first slice, 1 the end of the last. A position
    predicts the segment from centre - distance to start to centre + distance to end.

    Distances come from a softplus, where the paper has a ReLU, whose gradient can become permanently zero.

    Args:
        width: values per token.
        outputs: number of classes.
        levels: number of resolutions; a position of the coarsest should not be longer than the clip.
        pool: over the tokens of a slice: "mean", or "attention" with one learned query.
        depth: number of blocks before the pyramid; each level has one more.
        block: "attention", limited to the slices in reach, or "convolution".
        kernel: odd number of positions in the convolution of a block.
        hidden_width: values per position; null: the encoder's width.
        norm: of the pooled slices: "layer", or "standardize" with measured statistics.
    """

    output: ClassVar[str] = "pyramid"

    def __init__(  # noqa: PLR0913 - keyword-only
        self,
        *,
        width: int,
        outputs: int,
        levels: int = 4,
        pool: str = "mean",
        depth: int = 2,
        block: str = "convolution",
        kernel: int = 3,
        hidden_width: int | None = None,
        norm: str = "layer",
    ):
        super().__init__()
        require(levels >= 1, "head.args.levels", "be at least 1", levels)
        require(depth >= 0, "head.args.depth", "be 0 or more", depth)
        self.pool = SlicePool(width, pool=pool, norm=norm)
        self.needs_calibration = self.pool.needs_calibration
        hidden = hidden_width_of(hidden_width, width)
        self.input = nn.Linear(width, hidden)
        self.stem = nn.Sequential(*(time_block(block, hidden, kernel=kernel) for _ in range(depth)))
        self.down = nn.ModuleList(nn.Conv1d(hidden, hidden, 2, stride=2) for _ in range(levels - 1))
        self.levels = nn.ModuleList(time_block(block, hidden, kernel=kernel) for _ in range(levels))
        self.norms = nn.ModuleList(nn.LayerNorm(hidden, eps=1e-6) for _ in range(levels))
        self.classify = _Branch(hidden, outputs)
        self.regress = _Branch(hidden, 2)
        self.scales = nn.Parameter(torch.ones(levels))
        nn.init.constant_(self.classify.last.bias, -math.log((1 - _PRIOR) / _PRIOR))
        nn.init.ones_(self.regress.last.bias)

    def calibrate(self, features: Features) -> None:
        self.pool.calibrate(features)

    def forward(self, features: Features, draws: ClipRandom | None) -> Tensor:
        slices = features.slices
        parts = [self._predict(x_BpW, level, slices) for level, x_BpW in enumerate(self._pyramid(features))]
        return torch.cat(parts, dim=1)

    def _pyramid(self, features: Features) -> Sequence[Tensor]:
        x_BpW = self.stem(self.input(self.pool(features)))
        levels = []
        for level, block in enumerate(self.levels):
            if level > 0:
                is_odd = x_BpW.shape[1] % 2
                x_BpW = self.down[level - 1](functional.pad(x_BpW.mT, (0, is_odd))).mT
            x_BpW = block(x_BpW)
            levels.append(self.norms[level](x_BpW))
        return levels

    def _predict(self, x_BpW: Tensor, level: int, slices: int) -> Tensor:
        batch, positions, _ = x_BpW.shape
        size = 2**level / slices
        distance_Bp2 = functional.softplus(self.scales[level] * self.regress(x_BpW).float()) * size
        centre_p = (torch.arange(positions, device=x_BpW.device, dtype=torch.float32) + 0.5) * size
        geometry_p2 = torch.stack([centre_p, torch.full_like(centre_p, size)], dim=1)
        logits_BpY = self.classify(x_BpW).float()
        return torch.cat([logits_BpY, distance_Bp2, geometry_p2.expand(batch, -1, -1)], dim=2)


class _Branch(nn.Module):
    """Two convolutions that all levels share, and a linear layer."""

    def __init__(self, width: int, outputs: int):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv1d(width, width, 3, padding=1) for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(width, eps=1e-6) for _ in range(2))
        self.last = nn.Linear(width, outputs)
        nn.init.trunc_normal_(self.last.weight, std=0.01)

    def forward(self, x_BpW: Tensor) -> Tensor:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x_BpW = functional.relu(norm(conv(x_BpW.mT).mT))
        return self.last(x_BpW)
