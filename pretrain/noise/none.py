"""No noise: the encoder sees the clip as it is."""

from kinemae.pretrain.noise.base import Noise


class NoNoise(Noise):
    """Leaves everything as it is."""
