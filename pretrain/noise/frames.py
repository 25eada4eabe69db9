"""Temporal noise: repeated frames and changed speed."""

import math
from typing import Any

import torch
from torch import Tensor

from kinemae.data_tools.config import require
from kinemae.data_tools.randomness import ClipRandom
from kinemae.pretrain.model.tokens import clip_of_rows
from kinemae.pretrain.noise.base import Noise, Strength


class FrameNoise(Noise):
    """Replaces frames of the encoder's input by frames of other times; the target is unchanged.

    With a mask that differs between slices, a replaced frame may show pixels that are hidden. Tube masking
    hides the same positions in all slices and avoids this.

    Args:
        drop: probability at level 1 that a frame is replaced by the one before it.
        jitter: largest factor of the speed change around the middle of the clip at level 1, its logarithm
            drawn uniformly; takes the nearest frame, at the ends the first or last one. 1 for none.
        strength: see `Strength`.
    """

    def __init__(self, *, drop: float = 0.1, jitter: float = 1.25, strength: dict[str, Any] | None = None):
        require(0 <= drop <= 1, "noise.args.drop", "lie between 0 and 1", drop)
        require(jitter >= 1, "noise.args.jitter", "be at least 1 (none)", jitter)
        self.drop = drop
        self.jitter = jitter
        self.strength = Strength.read(strength)

    def on_clip(self, clip_BCTHW: Tensor, level_B: Tensor, draws: ClipRandom) -> Tensor:
        frame_BT = self.frame_indices(clip_BCTHW.shape[2], level_B, draws)
        clip_B1 = clip_of_rows(frame_BT, len(clip_BCTHW))
        return clip_BCTHW.transpose(1, 2)[clip_B1, frame_BT].transpose(1, 2)

    def frame_indices(self, frames: int, level_B: Tensor, draws: ClipRandom) -> Tensor:
        """Index of the frame that replaces each frame, int64 frame_BT."""
        frame_T = torch.arange(frames, device=level_B.device)
        middle = (frames - 1) / 2
        uniform_B = 2 * draws.uniform("noise/frames/jitter", ()) - 1
        speed_B1 = torch.exp(math.log(self.jitter) * level_B * uniform_B)[:, None]
        nearest_BT = (middle + speed_B1 * (frame_T - middle)).round().clamp(0, frames - 1).long()
        is_dropped_BT = draws.uniform("noise/frames/drop", (frames,)) < self.drop * level_B[:, None]
        held_BT = frame_T.masked_fill(is_dropped_BT, 0).cummax(dim=1).values
        return nearest_BT.gather(1, held_BT)
