"""Targets: what a masked autoencoder predicts for a wanted token. One file here is one target."""

from abc import ABC, abstractmethod

from torch import Tensor

from pretrain.model.tokens import Patch


class Target(ABC):
    """A target and the loss that belongs to it."""

    @abstractmethod
    def values(self, patch: Patch) -> int:
        """P, how many values are predicted for one token."""

    @abstractmethod
    def __call__(self, clip_BCTHW: Tensor, wanted_BM: Tensor, *, patch: Patch) -> Tensor:
        """What should have been predicted, as target_BMP in float32; called without gradients.

        Args:
            clip_BCTHW: the clean clip, uint8.
            wanted_BM: which tokens are predicted; only those should cost anything.
        """

    @abstractmethod
    def loss(self, prediction_BMP: Tensor, target_BMP: Tensor) -> Tensor:
        """How wrong each clip's prediction is, as loss_B in float32."""

    @abstractmethod
    def to_pixels(
        self,
        prediction_BMP: Tensor,
        clip_BCTHW: Tensor,
        *,
        wanted_BM: Tensor,
        visible_BK: Tensor | None,
        patch: Patch,
    ) -> Tensor | None:
        """Turn predictions into pictures, as uint8 patches_BMP; None where the target has no picture.

        Args:
            clip_BCTHW: the clean clip, uint8.
            visible_BK: None: whatever the target has taken away is put back from the hidden pixels
                themselves, the usual and flattering view. Given: only these visible tokens may be looked at.
        """
