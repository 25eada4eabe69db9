"""Mixup and cutmix for clips.

The partner of a clip is the same view of the neighbouring video. A clip's random numbers depend only on its
index in the run, so mixed clips are the same on any number of processes. Partners must be in one micro-batch,
see `MixConfig.group_size`.
"""

import functools
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kinemae.data_tools.config import require
from kinemae.data_tools.randomness import ClipRandom
from kinemae.data_tools.stream.batch import ClipBatch

_QUANTILES = 4096


@dataclass(frozen=True, kw_only=True)
class MixConfig:
    """Settings of mixup and cutmix; off by default.

    Attributes:
        mixup: alpha of mixup (https://arxiv.org/abs/1710.09412), a weighted sum of two clips; 0 is off.
        cutmix: alpha of cutmix (https://arxiv.org/abs/1905.04899), a box pasted from the partner; 0 is off.
        probability: fraction of the clips that are mixed.
        switch_probability: fraction of the mixed clips that use cutmix if both are on.
    """

    mixup: float = 0.0
    cutmix: float = 0.0
    probability: float = 1.0
    switch_probability: float = 0.5

    def __post_init__(self) -> None:
        for name in ("mixup", "cutmix"):
            value = getattr(self, name)
            require(value >= 0, f"mix.{name}", "be 0 (off) or more", value)
        for name in ("probability", "switch_probability"):
            value = getattr(self, name)
            require(0 <= value <= 1, f"mix.{name}", "lie between 0 and 1", value)

    @property
    def is_on(self) -> bool:
        """True if any clip is mixed."""
        return self.probability > 0 and (self.mixup > 0 or self.cutmix > 0)

    @property
    def cutmix_fraction(self) -> float:
        """Fraction of the mixed clips that use cutmix."""
        if self.mixup and self.cutmix:
            return self.switch_probability
        return 1.0 if self.cutmix else 0.0

    def group_size(self, views: int) -> int:
        """Number of clips that must be in one micro-batch, given the number of clips per video."""
        return 2 * views if self.is_on else views


@dataclass(frozen=True, kw_only=True)
class MixedClips:
    """Clips after mixing.

    Attributes:
        clip_BCTHW: uint8 RGB.
        partner_B: the partner's number in the batch.
        lam_B: weight of the clip's own label, lambda in the papers; the partner's weight is 1 - lam_B.
    """

    clip_BCTHW: Tensor
    partner_B: Tensor
    lam_B: Tensor


class Mixer:
    """Mix the clips of a micro-batch on its device.

    Args:
        views: clips per video, adjacent in the batch.
    """

    def __init__(self, config: MixConfig, *, views: int):
        self.config = config
        self.views = views

    def mix(self, batch: ClipBatch, draws: ClipRandom) -> MixedClips:
        """Mix each clip with its partner. A clip with an unreadable partner stays unchanged."""
        clips = len(batch.label_B)
        assert clips % self.config.group_size(self.views) == 0, "the batch plan keeps partners together"
        index_B = torch.arange(clips, device=batch.label_B.device)
        partner_B = index_B.view(-1, 2, self.views).flip(1).flatten()
        own_BCTHW = batch.clip_BCTHW
        height, width = own_BCTHW.shape[-2:]
        is_readable_B11 = batch.weight_B[partner_B, None, None] > 0
        weight_BHW = torch.where(is_readable_B11, self._own_weight(draws, height, width), 1.0)
        clip_BCTHW = own_BCTHW[partner_B].float().lerp_(own_BCTHW.float(), weight_BHW[:, None, None])
        return MixedClips(
            clip_BCTHW=clip_BCTHW.round_().to(torch.uint8),
            partner_B=partner_B,
            lam_B=weight_BHW.mean(dim=(1, 2)),
        )

    def _own_weight(self, draws: ClipRandom, height: int, width: int) -> Tensor:
        """Draw the weight of each clip's own pixels, as weight_BHW."""
        config = self.config
        mixed_B, cut_B, level_B, row_B, column_B = draws.uniform("mix", (5,)).unbind(1)
        mixup_B11 = _beta(level_B, config.mixup or 1.0)[:, None, None]
        cutmix_BHW = _outside_box(
            _beta(level_B, config.cutmix or 1.0), (row_B, column_B), height=height, width=width
        )
        weight_BHW = torch.where(cut_B[:, None, None] < config.cutmix_fraction, cutmix_BHW, mixup_B11)
        return torch.where(mixed_B[:, None, None] < config.probability, weight_BHW, 1.0)


def _outside_box(lam_B: Tensor, centre: tuple[Tensor, Tensor], *, height: int, width: int) -> Tensor:
    """Return 1 outside the partner's box and 0 inside, as outside_BHW. The box is torchvision's.

    Args:
        lam_B: fraction of the area outside a box that does not cross the edge.
        centre: row and column of the box's centre, on a scale of 0 to 1.
    """
    half_B = 0.5 * (1.0 - lam_B).sqrt()
    sides = []
    for size, centre_B in zip((height, width), centre, strict=True):
        middle_B1 = (centre_B * size).floor()[:, None]
        reach_B1 = (half_B * size).floor()[:, None]
        pixel_X = torch.arange(size, device=lam_B.device)
        sides.append((pixel_X >= middle_B1 - reach_B1) & (pixel_X < middle_B1 + reach_B1))
    return 1.0 - (sides[0][:, :, None] & sides[1][:, None, :]).float()


def _beta(uniform_B: Tensor, alpha: float) -> Tensor:
    """Map uniform numbers to the Beta(alpha, alpha) distribution by its quantiles."""
    table_Q = _quantiles(alpha, uniform_B.device)
    position_B = uniform_B * _QUANTILES
    below_B = position_B.long()
    return torch.lerp(table_Q[below_B], table_Q[below_B + 1], position_B - below_B)


@functools.cache
def _quantiles(alpha: float, device: torch.device) -> Tensor:
    """Compute the quantiles once per device: a copy to the GPU in each step would synchronize."""
    from scipy.special import betaincinv

    table_Q = betaincinv(alpha, alpha, np.linspace(0.0, 1.0, _QUANTILES + 1))
    return torch.tensor(table_Q, dtype=torch.float32, device=device)
