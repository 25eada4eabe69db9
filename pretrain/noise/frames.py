"""Disturbed time: frames that were dropped, and a clock that runs too fast or too slow."""

import math
from typing import Any

import torch
from torch import Tensor

from kinemae.data_tools.config import require
from kinemae.data_tools.randomness import ClipRandom
from kinemae.pretrain.noise.base import Noise, Strength


class FrameNoise(Noise):
    """Shows the encoder wrong frames at some times; what it is to predict stays where it was.

    Where a mask hides a place in some frames and shows it in others, a frame that is shown late may be one
    that was hidden. Tube masking hides a place in all of them, so that nothing hidden is shown.

    Args:
        drop: at level 1, the chance that a frame was dropped: the one before it is shown again.
        jitter: at level 1, the greatest factor by which time runs faster or slower around the middle of the
            clip, the factor's logarithm drawn evenly; the nearest frame is shown, at the ends the last one
            there is. 1 for none.
        strength: see `Strength`.
    """

    def __init__(self, *, drop: float = 0.1, jitter: float = 1.25, strength: dict[str, Any] | None = None):
        require(0 <= drop <= 1, "noise.args.drop", "lie between 0 and 1", drop)
        require(jitter >= 1, "noise.args.jitter", "be at least 1 (none)", jitter)
        self.drop = drop
        self.jitter = jitter
        self.strength = Strength.read(strength)

    def on_clip(self, clip_BCTHW: Tensor, level_B: Tensor, draws: ClipRandom) -> Tensor:
        """See `Noise.on_clip`."""
        shown_BT = self.shown_frames(clip_BCTHW.shape[2], level_B, draws)
        clip_B1 = torch.arange(len(clip_BCTHW), device=clip_BCTHW.device)[:, None]
        return clip_BCTHW.transpose(1, 2)[clip_B1, shown_BT].transpose(1, 2)

    def shown_frames(self, frames: int, level_B: Tensor, draws: ClipRandom) -> Tensor:
        """Which of a clip's frames is shown in place of each, int64 shown_BT."""
        frame_T = torch.arange(frames, device=level_B.device)
        middle = (frames - 1) / 2
        turn_B = 2 * draws.uniform("noise/frames/jitter", ()) - 1
        speed_B1 = torch.exp(math.log(self.jitter) * level_B * turn_B)[:, None]
        nearest_BT = (middle + speed_B1 * (frame_T - middle)).round().clamp(0, frames - 1).long()
        is_dropped_BT = draws.uniform("noise/frames/drop", (frames,)) < self.drop * level_B[:, None]
        held_BT = frame_T.masked_fill(is_dropped_BT, 0).cummax(dim=1).values
        return nearest_BT.gather(1, held_BT)
