"""Noise on the encoder's input; the target uses the clean clip. Each file in this folder is one kind.

A kind acts on the frames, on the visible patches or on the embedded tokens. Its level, `level_B` from 0 to 1,
is drawn per clip and scheduled over the run by `Strength`, which is the same for all kinds.
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
    """Noise level: config keys `noise.args.strength.*`.

    The level of a clip is the factor of the schedule times a number drawn uniformly from `min_level` to 1.
    The arguments of the kind define the noise at level 1.

    Attributes:
        min_level: lower bound of the drawn number; 1 for the same level in all clips.
        schedule: "constant": the factor is 1. "linear" or "cosine" (half a period): the factor changes from
            `start` to `end`.
        start, end: the factor before and after the ramp.
        ramp_start, ramp_end: start and end of the ramp as fractions of the run.
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
            require(not is_idle, _key(name), "be omitted if the schedule is constant", value)
        require(
            self.ramp_start < self.ramp_end,
            _key("ramp_start"),
            f"be less than ramp_end={self.ramp_end}",
            self.ramp_start,
        )

    @classmethod
    def read(cls, given: dict[str, Any] | None) -> "Strength":
        """Build from the keys of a config; None for the defaults.

        Raises:
            ValueError: an unknown key or an invalid value.
        """
        require(given is None or isinstance(given, dict), "noise.args.strength", "hold keys", given)
        known = [field.name for field in fields(cls)]
        for name in given or {}:
            require(name in known, _key(str(name)), f"be one of the keys {', '.join(known)}", name)
        return cls(**(given or {}))

    def level(self, progress_B: Tensor, drawn_B: Tensor) -> Tensor:
        """level_B from the progress of the run and a uniform random number per clip, both from 0 to 1."""
        level_B = self.min_level + (1 - self.min_level) * drawn_B
        if self.schedule != "constant":
            ramp_B = ((progress_B - self.ramp_start) / (self.ramp_end - self.ramp_start)).clamp(0, 1)
            if self.schedule == "cosine":
                ramp_B = 0.5 - 0.5 * torch.cos(math.pi * ramp_B)
            level_B = level_B * (self.start * (1 - ramp_B) + self.end * ramp_B)
        return level_B.clamp(0, 1)  # rounding may exceed the bounds


def _key(name: str) -> str:
    return f"noise.args.strength.{name}"


class Noise:
    """A noise kind; a subclass overrides the methods that it needs.

    At level 0 all methods return their input unchanged.

    Attributes:
        strength: schedule of the level; None without noise.
        is_on_patches: whether `on_patches` adds noise, which a target may predict.
    """

    strength: Strength | None = None
    is_on_patches: bool = False

    @property
    def has_level(self) -> bool:
        """True if the level differs between clips, so that a decoder can be conditioned on it."""
        return self.strength is not None and self.strength.min_level < 1

    @property
    def follows_progress(self) -> bool:
        """True if the noise changes with the progress of the run, so that a run cannot be prolonged."""
        return self.strength is not None and self.strength.schedule != "constant"

    def level(self, progress_B: Tensor, draws: ClipRandom) -> Tensor:
        """Noise level of each clip, level_B, float32 from 0 to 1.

        Args:
            progress_B: progress of the run at each clip, 0 to 1.
            draws: source of all random numbers.
        """
        if self.strength is None:
            return torch.zeros_like(progress_B)
        return self.strength.level(progress_B, draws.uniform("noise/strength", ()))

    def on_clip(self, clip_BCTHW: Tensor, level_B: Tensor, draws: ClipRandom) -> Tensor:
        """Add noise to the frames, uint8 to uint8; must not modify them in place.

        Args:
            level_B: a row for each clip, or several (`tokens.clip_of_rows`), as in `draws`.

        Returns:
            The noisy clip of each row; the clips themselves without noise.
        """
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
        """Add noise to the visible patches.

        Args:
            patches_BKP: normalized patches (`tokens.normalize`); must not be modified in place.
            positions: grid positions of the patches.
            patch: size of a patch.

        Returns:
            noisy patches_BKP of the same shape and dtype.
        """
        return patches_BKP

    def on_tokens(self, x_BKD: Tensor, level_B: Tensor, draws: ClipRandom) -> Tensor:
        """Add noise to the embedded visible tokens; must not modify them in place."""
        return x_BKD
