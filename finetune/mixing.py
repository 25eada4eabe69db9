"""Mixup and cutmix for clips: two videos in one clip, their labels shared accordingly.

Neighbouring videos of the run are partners, each view of the one with the same view of the other. How a clip
is mixed is drawn by its own place in the run, so it is the same on any number of processes, as long as
partners stand in one micro-batch: see `MixConfig.block`.
"""

import functools
from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import betaincinv
from torch import Tensor

from kinemae.data_tools.config import require
from kinemae.data_tools.randomness import ClipRandom
from kinemae.data_tools.stream.batch import ClipBatch

_QUANTILES = 4096


@dataclass(frozen=True, kw_only=True)
class MixConfig:
    """Mixing of clips; off by default.

    Attributes:
        mixup: alpha of mixup (https://arxiv.org/abs/1710.09412): both clips shine through; 0 is off.
        cutmix: alpha of cutmix (https://arxiv.org/abs/1905.04899): a box shows the partner; 0 is off.
        probability: share of the clips that are mixed.
        switch_probability: fraction of the mixed ones that are cut, where both are on.
    """

    mixup: float = 0.0
    cutmix: float = 0.0
    probability: float = 1.0
    switch_probability: float = 0.5

    def __post_init__(self) -> None:
        require(self.mixup >= 0, "mix.mixup", "be 0 (off) or more", self.mixup)
        require(self.cutmix >= 0, "mix.cutmix", "be 0 (off) or more", self.cutmix)
        for name in ("probability", "switch_probability"):
            value = getattr(self, name)
            require(0 <= value <= 1, f"mix.{name}", "lie between 0 and 1", value)

    @property
    def is_on(self) -> bool:
        """Whether any clip is mixed."""
        return self.probability > 0 and (self.mixup > 0 or self.cutmix > 0)

    @property
    def cut_share(self) -> float:
        """Share of the mixed clips that are cut."""
        if self.mixup and self.cutmix:
            return self.switch_probability
        return 1.0 if self.cutmix else 0.0

    def block(self, views: int) -> int:
        """Clips that must stand in one micro-batch, given the clips cut from one video."""
        return 2 * views if self.is_on else views


@dataclass(frozen=True, kw_only=True)
class MixedClips:
    """Clips after mixing.

    Attributes:
        clip_BCTHW: uint8 RGB.
        partner_label_B: the label of the video mixed in.
        share_B: how much of the clip is its own; the rest is the partner's.
    """

    clip_BCTHW: Tensor
    partner_label_B: Tensor
    share_B: Tensor


class Mixer:
    """Mixes the clips of a micro-batch, on its device.

    Args:
        views: clips cut from one video, which stand side by side.
    """

    def __init__(self, config: MixConfig, *, views: int):
        self.config = config
        self.views = views

    def mix(self, batch: ClipBatch, draws: ClipRandom) -> MixedClips:
        """Mix each clip with its partner. One whose partner could not be read stays as it is."""
        clips = len(batch.label_B)
        assert clips % self.config.block(self.views) == 0, "the plan keeps partners together"
        place_B = torch.arange(clips, device=batch.label_B.device)
        partner_B = place_B.view(-1, 2, self.views).flip(1).flatten()
        own_BCTHW = batch.clip_BCTHW
        height, width = own_BCTHW.shape[-2:]
        keep_BHW = self._keep(draws, height, width)
        is_readable_B11 = batch.weight_B[partner_B, None, None] > 0
        keep_BHW = torch.where(is_readable_B11, keep_BHW, 1.0)
        clip_BCTHW = own_BCTHW[partner_B].float().lerp_(own_BCTHW.float(), keep_BHW[:, None, None])
        return MixedClips(
            clip_BCTHW=clip_BCTHW.round_().to(torch.uint8),
            partner_label_B=batch.label_B[partner_B],
            share_B=keep_BHW.mean(dim=(1, 2)),
        )

    def _keep(self, draws: ClipRandom, height: int, width: int) -> Tensor:
        """How much of a clip's own stays at each place. Drawn for each clip, not for each pair."""
        config = self.config
        mixed_B, cut_B, level_B, row_B, column_B = draws.uniform("mix", (5,)).unbind(1)
        share_B11 = _beta(level_B, config.mixup or 1.0)[:, None, None]
        outside_BHW = _outside_box(
            _beta(level_B, config.cutmix or 1.0), (row_B, column_B), height=height, width=width
        )
        keep_BHW = torch.where(cut_B[:, None, None] < config.cut_share, outside_BHW, share_B11)
        return torch.where(mixed_B[:, None, None] < config.probability, keep_BHW, 1.0)


def _outside_box(share_B: Tensor, centre: tuple[Tensor, Tensor], *, height: int, width: int) -> Tensor:
    """1 outside the box that the partner fills and 0 inside, as outside_BHW; the box is torchvision's.

    Args:
        share_B: what stays outside, but for boxes that reach over the edge.
        centre: row and column of the box's centre, on a scale of 0 to 1.
    """
    half_B = 0.5 * (1.0 - share_B).sqrt()
    sides = []
    for size, centre_B in zip((height, width), centre, strict=True):
        middle_B1 = (centre_B * size).floor()[:, None]
        reach_B1 = (half_B * size).floor()[:, None]
        place_X = torch.arange(size, device=share_B.device)
        sides.append((place_X >= middle_B1 - reach_B1) & (place_X < middle_B1 + reach_B1))
    return 1.0 - (sides[0][:, :, None] & sides[1][:, None, :]).float()


def _beta(uniform_B: Tensor, alpha: float) -> Tensor:
    """Values of the Beta(alpha, alpha) distribution, from uniform ones by its quantiles."""
    table_Q = _quantiles(alpha, uniform_B.device)
    place_B = uniform_B * _QUANTILES
    below_B = place_B.long()
    return torch.lerp(table_Q[below_B], table_Q[below_B + 1], place_B - below_B)


@functools.cache
def _quantiles(alpha: float, device: torch.device) -> Tensor:
    """The 0th to the last quantile. Kept, since copying them to a GPU at each step would wait for it."""
    table_Q = betaincinv(alpha, alpha, np.linspace(0.0, 1.0, _QUANTILES + 1))
    return torch.tensor(table_Q, dtype=torch.float32, device=device)
