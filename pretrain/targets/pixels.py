"""Pixel target: the pixels of the target patches, normalized per patch by default."""

from typing import Literal, get_args

import torch
from torch import Tensor

from kinemae.data_tools.config import require
from kinemae.pretrain.model.blocks import Compilable
from kinemae.pretrain.model.sizes import EncoderShape
from kinemae.pretrain.model.token_positions import coordinates
from kinemae.pretrain.model.tokens import COLOURS, TokenGrid, denormalize, normalize, take_patches, to_bytes
from kinemae.pretrain.targets.base import DecoderTarget, TargetInputs

EPS = 1e-6
Normalization = Literal["channel", "patch", "none"]
Frames = Literal["all", "one"]


class PixelTarget(DecoderTarget, Compilable):
    """Predicts pixels with the mean squared error.

    Args:
        normalize: "channel": each colour of each patch as (x - mean) / (sqrt(var) + 1e-6) on a scale of 0 to
            1, with the unbiased variance (VideoMAE, arXiv 2203.12602).
            "patch": all values of a patch together, (x - mean) / sqrt(var + 1e-6), in the units of the
            encoder's input (MAE-ST, arXiv 2205.09113).
            "none": pixels in the units of the encoder's input.
        frames: "all" of a patch, or "one", as MAE-ST predicts them: of T frames in t slices the frames
            linspace(0, T - 1, t) rounded down. With slices of two frames that is the first frame of each
            slice, but of the last slice the second.
        motion_weight: see `DecoderTarget`.
    """

    def __init__(self, *, normalize: str = "channel", frames: str = "all", motion_weight: float = 0.0):
        for key, given, kind in (("normalize", normalize, Normalization), ("frames", frames, Frames)):
            known = get_args(kind)
            require(given in known, f"target.args.{key}", f"be one of {', '.join(known)}", given)
        super().__init__(motion_weight=motion_weight)
        self.normalize = normalize
        self.frames = frames

    def target_values(self, shape: EncoderShape) -> int:
        return shape.patch_values if self.frames == "all" else shape.patch_values // shape.patch[0]

    def compute_target(self, inputs: TargetInputs) -> Tensor:
        patches_BMP = self._take(inputs, inputs.target_BM)
        if self.normalize == "none":
            return normalize(patches_BMP, inputs.mean, inputs.std)
        grouped = self._group(patches_BMP, inputs)
        mean, spread = self._statistics(grouped)
        return grouped.sub_(mean).div_(spread).flatten(2)

    def to_pixels(self, decoded_BMP: Tensor, inputs: TargetInputs, *, visible_only: bool) -> Tensor:
        """See `Target.to_pixels`. With `visible_only`, statistics are interpolated from the visible patches.

        The weights are inverse squared distances in tokens. A single predicted frame is repeated for all
        frames of its patch.
        """
        values_BMP = decoded_BMP.float()
        if self.normalize != "none":
            source_BK = inputs.visible_BK if visible_only else inputs.target_BM
            mean, spread = self._statistics(self._group(self._take(inputs, source_BK), inputs))
            if visible_only:
                weight_BMK = _nearness(inputs)
                mean, spread = _blend(weight_BMK, mean), _blend(weight_BMK, spread)
            values_BMP = (values_BMP.unflatten(2, (-1, self._colours)) * spread + mean).flatten(2)
        if self.normalize != "channel":
            values_BMP = denormalize(values_BMP, inputs.mean, inputs.std)
        return to_bytes(values_BMP).repeat(1, 1, 1 if self.frames == "all" else inputs.patch[0])

    @property
    def _colours(self) -> int:
        """Number of colours with separate statistics."""
        return COLOURS if self.normalize == "channel" else 1

    def _take(self, inputs: TargetInputs, index_BK: Tensor) -> Tensor:
        """Pixels of the patches in the predicted frames."""
        if self.frames == "all":
            return take_patches(inputs.clip_BCTHW, index_BK, inputs.patch)
        frames, height, width = inputs.patch
        last = inputs.clip_BCTHW.shape[2] - 1
        slices = inputs.clip_BCTHW.shape[2] // frames
        frame_t = torch.arange(slices, device=index_BK.device) * last // max(1, slices - 1)
        return take_patches(inputs.clip_BCTHW.index_select(2, frame_t), index_BK, (1, height, width))

    def _group(self, patches_BMP: Tensor, inputs: TargetInputs) -> Tensor:
        """Pixels in the units of the statistics, as (B, M, pixels, colours)."""
        if self.normalize == "channel":
            return patches_BMP.float().mul_(1 / 255).unflatten(2, (-1, COLOURS))
        return normalize(patches_BMP, inputs.mean, inputs.std).unflatten(2, (-1, 1))

    def _statistics(self, grouped: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and divisor, each (B, M, 1, colours)."""
        variance, mean = torch.var_mean(grouped, dim=2, keepdim=True, unbiased=grouped.shape[2] > 1)
        return mean, variance.sqrt() + EPS if self.normalize == "channel" else (variance + EPS).sqrt()


def _nearness(inputs: TargetInputs) -> Tensor:
    """Weights of the visible tokens for each target token, as weight_BMK with rows that sum to 1."""
    frames, height, width = inputs.clip_BCTHW.shape[2:]
    patch = inputs.patch
    grid = TokenGrid(frames // patch[0], height // patch[1], width // patch[2])
    target_BM3, visible_BK3 = (
        torch.stack(coordinates(index, grid), dim=2).float()
        for index in (inputs.target_BM, inputs.visible_BK)
    )
    weight_BMK = 1 / torch.cdist(target_BM3, visible_BK3).square().clamp(min=EPS)
    return weight_BMK / weight_BMK.sum(dim=2, keepdim=True)


def _blend(weight_BMK: Tensor, statistic: Tensor) -> Tensor:
    """Average statistics of visible patches, (B, K, 1, colours), to (B, M, 1, colours)."""
    return (weight_BMK @ statistic.squeeze(2)).unsqueeze(2)
