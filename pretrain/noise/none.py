"""No noise: the encoder sees the clip as it is."""

from torch import Tensor

from data_tools.randomness import ClipRandom
from pretrain.noise.base import Noise


class NoNoise(Noise):
    """Leaves the patches as they are."""

    def __call__(self, patches_BKP: Tensor, draws: ClipRandom) -> Tensor:
        """See `Noise.__call__`."""
        return patches_BKP
