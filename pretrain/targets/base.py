"""Targets of the prediction and their losses. Each file in this folder is one target.

A target concerns the target tokens, which the decoder predicts, or the visible tokens, which a linear layer
on the encoder's output predicts.
"""

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

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
from kinemae.pretrain.model.tokens import Patch, gather_tokens, normalize, patchify


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
        original_BCTHW: the clip without the standardization of `model.standardize`; None if it has none.
    """

    clip_BCTHW: Tensor
    target_BM: Tensor
    visible_BK: Tensor
    added_BKP: Tensor | None
    patch: Patch
    mean: tuple[float, ...]
    std: tuple[float, ...]
    views: ViewInputs | None = None
    original_BCTHW: Tensor | None = None


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

    def forward(self, prediction: Prediction, inputs: TargetInputs) -> dict[str, Tensor]:
        """Same as `losses`, compiled if the target is `Compilable`."""
        return self.losses(prediction, inputs)

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

    def unsaved_bytes(self) -> int:
        """Bytes of weights on the device that are not part of the model's state; 0 by default."""
        return 0

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

    def metrics(self, target_BMP: Tensor) -> dict[str, Tensor]:
        """Metrics of the true values of each row, by name; none by default."""
        return {}

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
        return {"loss": error_BMP.mean(dim=(1, 2)), **self.metrics(target_BMP)}


FeatureLoss = Literal["l1", "smooth_l1", "mse"]


class EncoderTarget(DecoderTarget):
    """A target with the features of a teacher, an encoder that gets all tokens of the clean clip.

    A clip passes through the teacher once, whatever the number of its masks. Features are layer-normalized
    without weights. The metric "target_std" is the deviation of each channel over the target tokens of a
    clip, averaged over channels: at most about 1, and near 0 if the features have collapsed.

    Args:
        loss: "l1" (V-JEPA, arXiv 2404.08471; SALT), "smooth_l1" (data2vec, arXiv 2202.03555, section 3.3) or
            "mse" (data2vec 2.0, arXiv 2212.07525).
        beta: threshold between squared and linear error of "smooth_l1".
        last_layers: 1: the output of the teacher. More: the mean of the outputs of this many last blocks,
            each normalized per channel over the tokens of the clip (instance norm), as in data2vec 2.0.
        motion_weight: see `DecoderTarget`.
    """

    def __init__(self, *, loss: str, beta: float, last_layers: int, motion_weight: float):
        known = get_args(FeatureLoss)
        require(loss in known, "target.args.loss", f"be one of {', '.join(known)}", loss)
        require(beta > 0, "target.args.beta", "be above 0", beta)
        require(
            loss == "smooth_l1" or beta == 1,
            "target.args.beta",
            f"be omitted for target.args.loss={loss}; only smooth_l1 has it",
            beta,
        )
        require(last_layers >= 1, "target.args.last_layers", "be at least 1", last_layers)
        super().__init__(motion_weight=motion_weight)
        self.loss = loss
        self.beta = beta
        self.last_layers = last_layers

    def check_depth(self, teacher: EncoderShape) -> None:
        """Check that the teacher has `last_layers` blocks.

        Raises:
            ValueError: it has fewer.
        """
        depth = teacher.depth
        require(
            self.last_layers <= depth,
            "target.args.last_layers",
            f"be at most {depth}, the depth of the teacher",
            self.last_layers,
        )

    def features(
        self,
        teacher: Encoder,
        clip_BCTHW: Tensor,
        index_BM: Tensor,
        *,
        mean: tuple[float, ...],
        std: tuple[float, ...],
    ) -> Tensor:
        """Features of the target tokens, target_BMD in float32.

        Args:
            clip_BCTHW: the clip that the teacher sees, standardized if it was trained so.
            mean, std: normalization of the teacher's pixels.
        """
        x_BND = teacher.embed(normalize(patchify(clip_BCTHW, teacher.shape.patch), mean, std), None)
        depth = teacher.shape.depth
        chosen = range(depth - self.last_layers, depth) if self.last_layers > 1 else ()
        x_BND, layers = teacher.encode_layers(x_BND, None, chosen)
        if layers:
            normed = (F.instance_norm(layer_BND.float().mT) for layer_BND in layers)
            x_BND = functools.reduce(torch.add, normed).mT / len(layers)
        target_BMD = gather_tokens(x_BND, index_BM).float()
        return F.layer_norm(target_BMD, target_BMD.shape[2:])

    def errors(self, prediction_BMP: Tensor, target_BMP: Tensor) -> Tensor:
        """See `DecoderTarget.errors`."""
        if self.loss == "mse":
            return squared_errors(prediction_BMP, target_BMP)
        beta = self.beta if self.loss == "smooth_l1" else 0.0
        return F.smooth_l1_loss(prediction_BMP.float(), target_BMP, reduction="none", beta=beta)

    def metrics(self, target_BMP: Tensor) -> dict[str, Tensor]:
        """See `DecoderTarget.metrics`."""
        return {"target_std": target_BMP.std(dim=1, correction=0).mean(dim=1)}


def squared_errors(prediction_BMP: Tensor, target_BMP: Tensor) -> Tensor:
    """Squared error of each value, as error_BMP in float32."""
    return F.mse_loss(prediction_BMP.float(), target_BMP, reduction="none")
