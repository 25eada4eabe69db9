"""Gaussian pixel noise of a strength drawn anew for each clip."""

from torch import Tensor

from data_tools.randomness import ClipRandom
from pretrain.noise.base import Noise


class GaussianNoise(Noise):
    """Adds independent normal noise to every visible value, in normalised units (1 is a colour's deviation).

    Args:
        std: the greatest standard deviation of the noise.
        min_std: the least; a clip's own is drawn evenly between the two. Set it to `std` for a fixed one.
    """

    def __init__(self, *, std: float = 0.5, min_std: float = 0.0):
        if not 0 <= min_std <= std:
            raise ValueError(f"noise.args must hold 0 <= min_std <= std, got min_std={min_std} and std={std}")
        self.std = std
        self.min_std = min_std

    def __call__(self, patches_BKP: Tensor, draws: ClipRandom) -> Tensor:
        """See `Noise.__call__`."""
        strength_B11 = self.min_std + (self.std - self.min_std) * draws.uniform("noise/strength", (1, 1))
        noise_BKP = draws.normal("noise/values", patches_BKP.shape[1:])
        return patches_BKP + (strength_B11 * noise_BKP).to(patches_BKP.dtype)
