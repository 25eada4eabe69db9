"""Motion target: how the pixels of the wanted patches change from each frame to the next."""

from typing import get_args

import torch
from torch import Tensor

from kinemae.data_tools.config import require
from kinemae.pretrain.model.encoder import Encoder
from kinemae.pretrain.model.sizes import EncoderShape
from kinemae.pretrain.model.tokens import COLOURS, normalise, take_patches
from kinemae.pretrain.targets.base import DecoderTarget, TargetInputs
from kinemae.pretrain.targets.pixels import Normalisation

STILL = 2 / 255
"""A deviation on a scale of 0 to 1 that compression alone causes: well below it, nothing moves."""


class MotionTarget(DecoderTarget):
    """Predicts temporal differences under the mean squared error (MotionMAE, arXiv 2210.04154).

    For frame i of a tubelet it is x[i + 1] - x[i], also where the next frame is the next tubelet's; the
    clip's last frame repeats the difference before it, as `model.content.motion` does. So P is a patch's.

    Args:
        normalise: "channel": each colour of each patch as (d - mean) / sqrt(var + STILL^2) on a scale of 0 to
            1, with the unbiased variance; what is still stays near 0 instead of being blown up to noise.
            "patch": likewise, all colours of a patch together.
            "none": differences in the units of the encoder's input.
    """

    def __init__(self, *, normalise: str = "channel"):
        known = get_args(Normalisation)
        require(normalise in known, "target.args.normalise", f"be one of {', '.join(known)}", normalise)
        super().__init__()
        self.normalise = normalise

    def target_values(self, shape: EncoderShape) -> int:
        """See `Target.target_values`."""
        return shape.patch_values

    def bind(self, encoder: Encoder) -> None:
        """See `Target.bind`."""
        if encoder.grid.t * encoder.shape.patch[0] < 2:
            raise ValueError("clip.frames must be at least 2 for target.name=motion: a picture does not move")

    def compute_target(self, inputs: TargetInputs) -> Tensor:
        """See `DecoderTarget.compute_target`."""
        now_BMP, next_BMP = _moments(inputs)
        if self.normalise == "none":
            return normalise(next_BMP, inputs.mean, inputs.std) - normalise(now_BMP, inputs.mean, inputs.std)
        colours = COLOURS if self.normalise == "channel" else 1
        grouped = (next_BMP.float() - now_BMP.float()).mul_(1 / 255).unflatten(2, (-1, colours))
        variance, mean = torch.var_mean(grouped, dim=2, keepdim=True, unbiased=grouped.shape[2] > 1)
        return ((grouped - mean) / (variance + STILL**2).sqrt()).flatten(2)


def _moments(inputs: TargetInputs) -> tuple[Tensor, Tensor]:
    """The wanted patches' bytes and those of the frames after. Of the rest of the clip, bytes are copied."""
    last = inputs.clip_BCTHW.shape[2] - 1
    frame_T = torch.arange(last + 1, device=inputs.clip_BCTHW.device).clamp(max=last - 1)
    now_BMP, next_BMP = (
        take_patches(inputs.clip_BCTHW.index_select(2, moment_T), inputs.target_BM, inputs.patch)
        for moment_T in (frame_T, frame_T + 1)
    )
    return now_BMP, next_BMP
