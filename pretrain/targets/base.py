"""Targets: what a masked autoencoder predicts. One file here is one target, with the loss that belongs to it.

A target may be about the wanted tokens, which the decoder predicts, or about the visible ones, for which a
linear layer on the encoder's tokens is enough.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kinemae.pretrain.model.encoder import Encoder
from kinemae.pretrain.model.sizes import EncoderShape
from kinemae.pretrain.model.tokens import Patch


@dataclass(frozen=True, kw_only=True, eq=False)
class TargetInputs:
    """What is known when the loss is computed: the clean clip and what the model was shown of it.

    Attributes:
        clip_BCTHW: the clean clip, uint8 RGB.
        target_BM: which tokens the decoder predicts; only those should cost anything.
        visible_BK: which tokens the encoder kept.
        added_BKP: what noise added to the visible patches, in normalised units; None where none did.
        patch: size of a patch.
        mean, std: what pixels are normalised by.
    """

    clip_BCTHW: Tensor
    target_BM: Tensor
    visible_BK: Tensor
    added_BKP: Tensor | None
    patch: Patch
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Prediction:
    """What the model says: decoded_BMP from the decoder, visible_BKP from the layer on the visible tokens."""

    decoded_BMP: Tensor | None = None
    visible_BKP: Tensor | None = None


class Target(nn.Module, ABC):
    """What is predicted and how wrong a prediction is.

    A module, because some targets have weights; none of them is learned by gradients.

    Attributes:
        needs_noise: it is about what noise added to the patches, and means nothing without.
    """

    needs_noise: bool = False

    def __init__(self) -> None:
        # nn.Module's would take any argument, and a config could not be told of a wrong one.
        super().__init__()

    @abstractmethod
    def target_values(self, shape: EncoderShape) -> int:
        """P, how many values are predicted for one wanted token; 0 for none, so that no decoder is built."""

    def visible_values(self, shape: EncoderShape) -> int:
        """How many values are predicted for one visible token; 0 for none."""
        return 0

    def bind(self, encoder: Encoder) -> None:
        """Called when the model has been built and before it trains; the last call counts.

        Raises:
            ValueError: this target and this encoder do not go together.
        """

    @abstractmethod
    def losses(self, prediction: Prediction, inputs: TargetInputs) -> dict[str, Tensor]:
        """How wrong each clip's prediction is, loss_B in float32 as "loss"; parts of it under other names."""

    def after_update(self, encoder: Encoder, progress: float) -> None:
        """Called after each update of the weights.

        Args:
            progress: how much of the run is done, above 0 and at most 1.
        """

    def state_metrics(self, encoder: Encoder) -> dict[str, Tensor]:
        """What is worth logging about the target's own state: single numbers by name, none by default."""
        return {}

    def to_pixels(self, decoded_BMP: Tensor, inputs: TargetInputs, *, visible_only: bool) -> Tensor | None:
        """Turn predictions into pictures, as uint8 patches_BMP; None where the target has no picture.

        Args:
            visible_only: only the visible tokens may be looked at. Else whatever the target has taken away is
                put back from the hidden pixels themselves, the usual and flattering view.
        """
        return None


class DecoderTarget(Target):
    """A target that is a value for each wanted token of the clean clip."""

    @abstractmethod
    def compute_target(self, inputs: TargetInputs) -> Tensor:
        """What should have been predicted, as target_BMP in float32; called without gradients."""

    def errors(self, prediction_BMP: Tensor, target_BMP: Tensor) -> Tensor:
        """How wrong each clip's prediction is, as loss_B in float32: the mean squared error."""
        return squared_errors(prediction_BMP, target_BMP)

    def losses(self, prediction: Prediction, inputs: TargetInputs) -> dict[str, Tensor]:
        """See `Target.losses`."""
        assert prediction.decoded_BMP is not None
        with torch.no_grad():
            target_BMP = self.compute_target(inputs)
        return {"loss": self.errors(prediction.decoded_BMP, target_BMP)}


def squared_errors(prediction_BMP: Tensor, target_BMP: Tensor) -> Tensor:
    """Each clip's mean squared error, as loss_B in float32."""
    return F.mse_loss(prediction_BMP.float(), target_BMP, reduction="none").mean(dim=(1, 2))
