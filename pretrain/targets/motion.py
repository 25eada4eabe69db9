"""Motion target: differences between successive frames in the target patches."""

from typing import Literal, get_args

import torch
from torch import Tensor

from kinemae.data_tools.config import require
from kinemae.pretrain.model.blocks import Compilable
from kinemae.pretrain.model.encoder import Encoder
from kinemae.pretrain.model.sizes import EncoderShape
from kinemae.pretrain.model.tokens import COLOURS, normalize, take_patches
from kinemae.pretrain.targets.base import DecoderTarget, TargetInputs

Normalization = Literal["channel", "patch", "clip", "none"]
STILL = 2 / 255
"""Deviation that compression causes, on a scale of 0 to 1."""


class MotionTarget(DecoderTarget, Compilable):
    """Predicts temporal differences with the mean squared error (MotionMAE, arXiv 2210.04154).

    The value of frame i is x[i + 1] - x[i], also across tubelets; the last frame of the clip repeats the
    difference before it.

    Args:
        normalize: "channel": each colour of each patch as (d - mean) / sqrt(var + STILL^2) on a scale of 0 to
            1, with the unbiased variance; STILL keeps still patches near 0.
            "patch": likewise, all colours of a patch together.
            "clip": d / sqrt(mean of the clip's d^2 + STILL^2) on a scale of 0 to 1. Unlike "channel", it
            keeps the change of a patch's brightness, and patches with more motion have larger values.
            "none": differences in the units of the encoder's input.
        motion_weight: see `DecoderTarget`.
    """

    def __init__(self, *, normalize: str = "channel", motion_weight: float = 0.0):
        known = get_args(Normalization)
        require(normalize in known, "target.args.normalize", f"be one of {', '.join(known)}", normalize)
        super().__init__(motion_weight=motion_weight)
        self.normalize = normalize

    def target_values(self, shape: EncoderShape) -> int:
        return shape.patch_values

    def bind(self, encoder: Encoder) -> None:
        if encoder.grid.t * encoder.shape.patch[0] < 2:
            raise ValueError("clip.frames must be at least 2 for target.name=motion: a picture does not move")

    def compute_target(self, inputs: TargetInputs) -> Tensor:
        now_BMP, next_BMP = _frame_pairs(inputs)
        if self.normalize == "none":
            return normalize(next_BMP, inputs.mean, inputs.std) - normalize(now_BMP, inputs.mean, inputs.std)
        difference_BMP = (next_BMP.float() - now_BMP.float()).mul_(1 / 255)
        if self.normalize == "clip":
            return difference_BMP / _clip_scale(inputs)
        grouped = difference_BMP.unflatten(2, (-1, COLOURS if self.normalize == "channel" else 1))
        variance, mean = torch.var_mean(grouped, dim=2, keepdim=True, unbiased=grouped.shape[2] > 1)
        return ((grouped - mean) / (variance + STILL**2).sqrt()).flatten(2)


def _clip_scale(inputs: TargetInputs) -> Tensor:
    """Divisor of the differences of each mask's clip, (B, 1, 1)."""
    square_BCTHW = inputs.clip_BCTHW.float().diff(dim=2).mul_(1 / 255).square_()
    scale_B = (square_BCTHW.mean(dim=(1, 2, 3, 4)) + STILL**2).sqrt()
    return scale_B.repeat_interleave(len(inputs.target_BM) // len(scale_B))[:, None, None]


def _frame_pairs(inputs: TargetInputs) -> tuple[Tensor, Tensor]:
    """Pixels of the target patches and of the same patches one frame later."""
    last = inputs.clip_BCTHW.shape[2] - 1
    frame_T = torch.arange(last + 1, device=inputs.clip_BCTHW.device).clamp(max=last - 1)
    now_BMP, next_BMP = (
        take_patches(inputs.clip_BCTHW.index_select(2, index_T), inputs.target_BM, inputs.patch)
        for index_T in (frame_T, frame_T + 1)
    )
    return now_BMP, next_BMP
