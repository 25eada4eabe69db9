"""Noise: what is done to the pixels that the encoder sees. One file here is one kind of noise."""

from abc import ABC, abstractmethod

from torch import Tensor

from data_tools.randomness import ClipRandom


class Noise(ABC):
    """A kind of noise. It gets only visible patches; the target is made from the clean clip."""

    @abstractmethod
    def __call__(self, patches_BKP: Tensor, draws: ClipRandom) -> Tensor:
        """Disturb the visible patches.

        Args:
            patches_BKP: normalised patches (`tokens.normalise`); not to be changed in place.
            draws: the clips' randomness; all chance comes from it.

        Returns:
            noisy patches_BKP of the same shape and dtype.
        """
