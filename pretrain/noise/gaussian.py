"""Gaussian pixel noise, independent for each visible value."""

from typing import Any

from torch import Tensor

from kinemae.data_tools.config import require
from kinemae.data_tools.randomness import ClipRandom
from kinemae.pretrain.noise.base import Noise, Strength


class GaussianNoise(Noise):
    """Adds independent normal noise to visible values, in normalized units (1 is the deviation of a colour).

    Args:
        std: standard deviation at level 1.
        min_std: lowest standard deviation of a clip; sets `strength.min_level` to min_std / std.
        strength: see `Strength`.
    """

    def __init__(self, *, std: float = 0.5, min_std: float = 0.0, strength: dict[str, Any] | None = None):
        if not 0 <= min_std <= std:
            raise ValueError(f"noise.args must hold 0 <= min_std <= std, got min_std={min_std} and std={std}")
        given = Strength.read(strength)
        if min_std:
            require(
                not given.min_level,
                "noise.args.min_std",
                "be omitted if noise.args.strength.min_level is set",
                min_std,
            )
            given = Strength.read({**(strength or {}), "min_level": min_std / std})
        self.std = std
        self.strength = given
        self.is_on_patches = std > 0

    def on_patches(self, patches_BKP: Tensor, level_B: Tensor, draws: ClipRandom, **_: Any) -> Tensor:
        noise_BKP = draws.normal("noise/values", patches_BKP.shape[1:])
        return patches_BKP + (self.std * level_B[:, None, None] * noise_BKP).to(patches_BKP.dtype)
