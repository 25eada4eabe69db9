"""Noise: what is done to the clip that the encoder sees; the target keeps the clean one.

One file here is one kind. A kind works where its nature is: on the frames, on the visible patches or on
their embedded tokens. How strong it is, `level_B` from 0 to 1, is drawn anew for each clip under a schedule
of the step: `Strength`, the same for all kinds.
"""

import math
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from kinemae.data_tools.config import require
from kinemae.data_tools.randomness import ClipRandom
from kinemae.pretrain.model.token_positions import TokenPositions
from kinemae.pretrain.model.tokens import Patch

Schedule = Literal["constant", "linear", "cosine"]


@dataclass(frozen=True, kw_only=True)
class Strength:
    """How strong noise is: config keys `noise.args.strength.*`.

    A clip's level is a factor of the schedule, times a number that the clip draws evenly between `min_level`
    and 1. What level 1 means is said by the kind's own arguments.

    Attributes:
        min_level: the least that a clip draws; 1 for the same strength at every clip.
        schedule: "constant": the factor is 1 all the time. "linear" or "cosine": it goes from `start` to
            `end`, evenly or as half a cosine wave.
        start, end: the factor up to `ramp_start` of the run, and from `ramp_end` on.
    """

    min_level: float = 0.0
    schedule: str = "constant"
    start: float = 0.0
    end: float = 1.0
    ramp_start: float = 0.0
    ramp_end: float = 1.0

    def __post_init__(self) -> None:
        known = get_args(Schedule)
        require(self.schedule in known, _key("schedule"), f"be one of {', '.join(known)}", self.schedule)
        for name in ("min_level", "start", "end", "ramp_start", "ramp_end"):
            value = getattr(self, name)
            is_number = isinstance(value, float | int) and not isinstance(value, bool)
            require(is_number and 0 <= value <= 1, _key(name), "be a number from 0 to 1", value)
            is_idle = self.schedule == "constant" and name != "min_level" and value != getattr(Strength, name)
            require(not is_idle, _key(name), "be left out where the schedule is constant", value)
        require(
            self.ramp_start < self.ramp_end,
            _key("ramp_start"),
            f"be less than ramp_end={self.ramp_end}",
            self.ramp_start,
        )

    @classmethod
    def read(cls, given: dict[str, Any] | None) -> "Strength":
        """Build one from a config's keys; None for the defaults.

        Raises:
            ValueError: an unknown key, or a value that cannot be; the message names it.
        """
        require(given is None or isinstance(given, dict), "noise.args.strength", "hold keys", given)
        known = [field.name for field in fields(cls)]
        for name in given or {}:
            require(name in known, _key(str(name)), f"be one of the keys {', '.join(known)}", name)
        return cls(**(given or {}))

    def level(self, progress_B: Tensor, drawn_B: Tensor) -> Tensor:
        """level_B from how far the run is, 0 to 1, and from what each clip drew evenly from 0 to 1."""
        level_B = self.min_level + (1 - self.min_level) * drawn_B
        if self.schedule != "constant":
            share_B = ((progress_B - self.ramp_start) / (self.ramp_end - self.ramp_start)).clamp(0, 1)
            if self.schedule == "cosine":
                share_B = 0.5 - 0.5 * torch.cos(math.pi * share_B)
            level_B = level_B * (self.start * (1 - share_B) + self.end * share_B)
        return level_B.clamp(0, 1)  # rounding may have led a hair beyond


def _key(name: str) -> str:
    return f"noise.args.strength.{name}"


class Noise:
    """A kind of noise; a kind replaces those methods that it needs.

    At level 0 every method returns exactly what it was given.

    Attributes:
        strength: how strong it is when; None where there is nothing to be strong.
        is_on_patches: `on_patches` changes something, and a target may ask for the difference.
    """

    strength: Strength | None = None
    is_on_patches: bool = False

    @property
    def has_level(self) -> bool:
        """Whether its strength differs from clip to clip, so that a decoder can be told."""
        return self.strength is not None and self.strength.min_level < 1

    def level(self, progress_B: Tensor, draws: ClipRandom) -> Tensor:
        """How strong the noise is for each clip, level_B, float32 from 0 to 1.

        Args:
            progress_B: how far the run is at each clip, 0 to 1.
            draws: the clips' randomness; all chance comes from it.
        """
        if self.strength is None:
            return torch.zeros_like(progress_B)
        return self.strength.level(progress_B, draws.uniform("noise/strength", ()))

    def on_clip(self, clip_BCTHW: Tensor, level_B: Tensor, draws: ClipRandom) -> Tensor:
        """Disturb the frames, uint8 to uint8; not to be changed in place."""
        return clip_BCTHW

    def on_patches(
        self,
        patches_BKP: Tensor,
        level_B: Tensor,
        draws: ClipRandom,
        *,
        positions: TokenPositions,
        patch: Patch,
    ) -> Tensor:
        """Disturb the visible patches.

        Args:
            patches_BKP: normalised patches (`tokens.normalise`); not to be changed in place.
            positions: which tokens of the grid they are.
            patch: size of a patch.

        Returns:
            noisy patches_BKP of the same shape and dtype.
        """
        return patches_BKP

    def on_tokens(self, x_BKD: Tensor, level_B: Tensor, draws: ClipRandom) -> Tensor:
        """Disturb the embedded visible tokens; not to be changed in place."""
        return x_BKD
