"""Targets of the prediction and their losses. Each file in this folder is one target.

A target concerns the target tokens, which the decoder predicts, or the visible tokens, which a linear layer
on the encoder's output predicts.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kinemae.data_tools.config import require
from kinemae.data_tools.randomness import ClipRandom
from kinemae.data_tools.stream.yuv_to_rgb import to_luma
from kinemae.pretrain.model.encoder import Encoder
from kinemae.pretrain.model.motion_energy import motion_weights
from kinemae.pretrain.model.sigreg import Total
from kinemae.pretrain.model.sizes import EncoderShape
from kinemae.pretrain.model.tokens import Patch


@dataclass(frozen=True, kw_only=True, eq=False)
class ViewInputs:
    """Inputs of a loss that encodes further views of the clips, or compares clips.

    Attributes:
        tokens_BKD: the encoder's output for the visible tokens, a row for each mask.
        weight_B: 0 for a clip that could not be read, else 1.
        draws: random numbers of the clips.
        encode: encodes uint8 patches_RKP at tokens index_RK with draws of the rows R, as tokens_RKD; see
            `MaskedAutoencoder.encode_views`.
        total: sum over all processes, with its gradient.
    """

    tokens_BKD: Tensor
    weight_B: Tensor
    draws: ClipRandom
    encode: Callable[[Tensor, Tensor, ClipRandom], Tensor]
    total: Total


@dataclass(frozen=True, kw_only=True, eq=False)
class TargetInputs:
    """Inputs of the loss: the clean clip and the token selection.

    With several masks per clip, target_BM, visible_BK and added_BKP have a row for each mask, those of a clip
    one after another, and clip_BCTHW has one for each clip. `take_patches` and `gather_tokens` support this.

    Attributes:
        clip_BCTHW: the clean clip, uint8 RGB.
        target_BM: tokens that the decoder predicts.
        visible_BK: tokens that the encoder kept.
        added_BKP: noise added to the visible patches, in normalized units; None if not needed.
        patch: size of a patch.
        mean, std: normalization of pixels.
        views: inputs of targets that encode views; None if only other targets use this.
    """

    clip_BCTHW: Tensor
    target_BM: Tensor
    visible_BK: Tensor
    added_BKP: Tensor | None
    patch: Patch
    mean: tuple[float, ...]
    std: tuple[float, ...]
    views: ViewInputs | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Prediction:
    """Predictions: decoded_BMP of the decoder, visible_BKP of the layer on the visible tokens."""

    decoded_BMP: Tensor | None = None
    visible_BKP: Tensor | None = None


class Target(nn.Module, ABC):
    """A target and its loss.

    A module, because some targets have weights.

    Attributes:
        needs_noise: whether it predicts the noise added to the patches.
        uses_global_batch: whether the loss of a clip depends on the other clips of the global batch. Only
            such a target has weights that gradients train.
    """

    needs_noise: bool = False
    uses_global_batch: bool = False

    def __init__(self) -> None:
        # Without this, nn.Module's signature would accept any argument of a config.
        super().__init__()

    @abstractmethod
    def target_values(self, shape: EncoderShape) -> int:
        """P, number of values predicted per target token; 0 for a model without a decoder."""

    def visible_values(self, shape: EncoderShape) -> int:
        """Number of values predicted per visible token; 0 for none."""
        return 0

    def bind(self, encoder: Encoder) -> None:
        """Called after the model is built or loaded, before training; the last call counts.

        Raises:
            ValueError: the encoder does not support this target.
        """

    @abstractmethod
    def losses(self, prediction: Prediction, inputs: TargetInputs) -> dict[str, Tensor]:
        """Loss of each clip or each mask as "loss", loss_B in float32, and further values by name."""

    def after_update(self, encoder: Encoder, progress: float) -> None:
        """Called after each optimizer step.

        Args:
            progress: fraction of the run done, above 0 and at most 1.
        """

    @property
    def follows_progress(self) -> bool:
        """True if updates depend on the progress of the run, so that a run cannot be prolonged."""
        return type(self).after_update is not Target.after_update

    def state_metrics(self, encoder: Encoder) -> dict[str, Tensor]:
        """Metrics of the target's own state: scalars by name, none by default."""
        return {}

    def to_pixels(self, decoded_BMP: Tensor, inputs: TargetInputs, *, visible_only: bool) -> Tensor | None:
        """Convert predictions to pixels, as uint8 patches_BMP; None if the target has no picture.

        Args:
            visible_only: use visible pixels only. Otherwise normalization is inverted with the true
                statistics of the hidden pixels, as papers usually do, which makes predictions look better.
        """
        return None


class DecoderTarget(Target):
    """A target with values for each target token of the clean clip.

    Args:
        motion_weight: exponent of the motion in the weight of a token's error: motion ** motion_weight,
            divided by its mean over the predicted tokens of the clip. Motion is that of motion masks
            (`motion_energy.motion`). 0: all tokens have the same weight.
    """

    def __init__(self, *, motion_weight: float = 0.0):
        require(0 <= motion_weight < math.inf, "target.args.motion_weight", "be at least 0", motion_weight)
        super().__init__()
        self.motion_weight = motion_weight

    @abstractmethod
    def compute_target(self, inputs: TargetInputs) -> Tensor:
        """The true values, as target_BMP in float32; called without gradients."""

    def errors(self, prediction_BMP: Tensor, target_BMP: Tensor) -> Tensor:
        """Error of each value, as error_BMP in float32: the squared error."""
        return squared_errors(prediction_BMP, target_BMP)

    def losses(self, prediction: Prediction, inputs: TargetInputs) -> dict[str, Tensor]:
        assert prediction.decoded_BMP is not None
        with torch.no_grad():
            target_BMP = self.compute_target(inputs)
        error_BMP = self.errors(prediction.decoded_BMP, target_BMP)
        if self.motion_weight:
            luma_BTHW = to_luma(inputs.clip_BCTHW)
            error_BMP = error_BMP * motion_weights(
                luma_BTHW, inputs.target_BM, inputs.patch, strength=self.motion_weight
            )
        return {"loss": error_BMP.mean(dim=(1, 2))}


def squared_errors(prediction_BMP: Tensor, target_BMP: Tensor) -> Tensor:
    """Squared error of each value, as error_BMP in float32."""
    return F.mse_loss(prediction_BMP.float(), target_BMP, reduction="none")
