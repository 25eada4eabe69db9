"""No noise."""

from kinemae.pretrain.noise.base import Noise


class NoNoise(Noise):
    """Returns all inputs unchanged."""
