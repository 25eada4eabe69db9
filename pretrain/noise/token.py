"""Gaussian noise on the embedded tokens."""

from typing import Any

from torch import Tensor

from kinemae.data_tools.config import require
from kinemae.data_tools.randomness import ClipRandom
from kinemae.pretrain.noise.base import Noise, Strength

_EPS = 1e-12  # avoids an infinite gradient at zero


class TokenNoise(Noise):
    """Adds independent normal noise to the embedded visible tokens, positions included.

    The noise is relative to the root mean square of the token, which has a gradient, so larger embeddings do
    not reduce the noise.

    Args:
        std: standard deviation at level 1, in units of the token's root mean square.
        strength: see `Strength`.
    """

    def __init__(self, *, std: float = 0.2, strength: dict[str, Any] | None = None):
        require(std >= 0, "noise.args.std", "be 0 or more", std)
        self.std = std
        self.strength = Strength.read(strength)

    def on_tokens(self, x_BKD: Tensor, level_B: Tensor, draws: ClipRandom) -> Tensor:
        size_BK1 = (x_BKD.float().square().mean(dim=2, keepdim=True) + _EPS).sqrt()
        noise_BKD = draws.normal("noise/token", x_BKD.shape[1:])
        return x_BKD + (self.std * level_B[:, None, None] * size_BK1 * noise_BKD).to(x_BKD.dtype)
