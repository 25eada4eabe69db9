"""Feature target: features of an EMA teacher on the whole clean clip, at the target tokens."""

import copy
import math
from typing import Literal, Self, get_args

import torch
from torch import Tensor

from kinemae.data_tools.config import require
from kinemae.pretrain.model.encoder import Encoder
from kinemae.pretrain.model.sizes import EncoderShape
from kinemae.pretrain.targets.base import EncoderTarget, TargetInputs

Schedule = Literal["linear", "cosine"]


class FeatureTarget(EncoderTarget):
    """Predicts the features of an exponential moving average of the encoder; the decoder is the predictor.

    The defaults are V-JEPA's (arXiv 2404.08471, section 3). The teacher encodes all tokens without noise or
    drop path. Its state is part of the checkpoints. It adds a forward pass over all N tokens of a clip.
    Features may collapse, and then the loss falls too: see "target_std" in the metrics.

    Differences to V-JEPA: all masks of a clip come from one masking, not one short-range and one long-range
    mask; the decay reaches its end with the run, not at 1.25 times its length; the predictor is narrow and
    attends to itself only with `model.decoder=self`.

    Differences to data2vec 2.0 (arXiv 2212.07525), with `last_layers`, `loss=mse` and `masks_per_clip`: the
    layers are outputs of blocks, not of their MLPs before the residual; the decoder is a transformer, not
    convolutions; there is no loss on a class token; the decay reaches its end with the run, not after a
    fixed number of steps.

    Args:
        decay: decay of the moving average at the start of the run.
        final_decay: decay at the end of the run.
        schedule: "linear" (V-JEPA, data2vec) or "cosine", half a period (BYOL, arXiv 2006.07733,
            section 3.2).
        loss, beta, last_layers, motion_weight: see `EncoderTarget`.
    """

    def __init__(  # noqa: PLR0913 - all by name
        self,
        *,
        decay: float = 0.998,
        final_decay: float = 1.0,
        schedule: str = "linear",
        loss: str = "l1",
        beta: float = 1.0,
        last_layers: int = 1,
        motion_weight: float = 0.0,
    ):
        require(0 <= decay < 1, "target.args.decay", "lie in [0, 1)", decay)
        require(
            decay <= final_decay <= 1,
            "target.args.final_decay",
            f"lie between target.args.decay={decay} and 1",
            final_decay,
        )
        known = get_args(Schedule)
        require(schedule in known, "target.args.schedule", f"be one of {', '.join(known)}", schedule)
        super().__init__(loss=loss, beta=beta, last_layers=last_layers, motion_weight=motion_weight)
        self.decay = decay
        self.final_decay = final_decay
        self.schedule = schedule

    def target_values(self, shape: EncoderShape) -> int:
        return shape.width

    def bind(self, encoder: Encoder) -> None:
        """See `Target.bind`. The teacher starts as a copy of the encoder."""
        self.check_depth(encoder.shape)
        self.teacher = copy.deepcopy(encoder).requires_grad_(False).eval()
        self.teacher.merge_tokens(0)  # merged tokens would have the same target

    def train(self, mode: bool = True) -> Self:
        """See `nn.Module.train`; the teacher stays in evaluation mode."""
        super().train(mode)
        for child in self.children():
            child.eval()
        return self

    def compute_target(self, inputs: TargetInputs) -> Tensor:
        return self.features(
            self.teacher, inputs.clip_BCTHW, inputs.target_BM, mean=inputs.mean, std=inputs.std
        )

    def after_update(self, encoder: Encoder, progress: float) -> None:
        with torch.no_grad():
            torch._foreach_lerp_(
                list(self.teacher.parameters()), list(encoder.parameters()), 1 - self.decay_at(progress)
            )

    @property
    def follows_progress(self) -> bool:
        return self.decay != self.final_decay

    def decay_at(self, progress: float) -> float:
        """Decay at a progress of the run, 0 to 1."""
        if self.schedule == "linear":
            return self.decay + (self.final_decay - self.decay) * progress
        return self.final_decay - (self.final_decay - self.decay) * (math.cos(math.pi * progress) + 1) / 2

    def state_metrics(self, encoder: Encoder) -> dict[str, Tensor]:
        """See `Target.state_metrics`: "ema_distance", relative to the norm of the encoder's weights."""
        pairs = list(zip(self.teacher.parameters(), encoder.parameters(), strict=True))
        with torch.no_grad():
            apart = torch.stack([(teacher - own).norm() for teacher, own in pairs]).norm()
            return {"ema_distance": apart / torch.stack([own.norm() for _, own in pairs]).norm()}
