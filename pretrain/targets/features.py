"""Feature target: features of an EMA teacher on the whole clean clip, at the target tokens."""

import copy
import math
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from kinemae.data_tools.config import require
from kinemae.pretrain.model.encoder import Encoder
from kinemae.pretrain.model.sizes import EncoderShape
from kinemae.pretrain.model.tokens import gather_tokens
from kinemae.pretrain.targets.base import DecoderTarget, TargetInputs


class FeatureTarget(DecoderTarget):
    """Predicts a teacher's features with the smooth L1 loss; the decoder is the predictor.

    The teacher is an exponential moving average of the encoder, as in data2vec (arXiv 2202.03555) and V-JEPA
    (arXiv 2404.08471). It encodes all tokens without noise or drop path; its output is layer-normalized
    without weights. Its state is part of the checkpoints. Features may collapse: monitor their deviation in
    the log. The teacher adds a forward pass over all N tokens.

    Args:
        decay: decay of the moving average at the start of the run.
        final_decay: decay at the end of the run, reached by a half cosine (arXiv 2006.07733, section 3.2).
        beta: threshold between squared and linear error (arXiv 2202.03555, section 3.3).
    """

    def __init__(self, *, decay: float = 0.998, final_decay: float = 1.0, beta: float = 1.0):
        require(0 <= decay < 1, "target.args.decay", "lie in [0, 1)", decay)
        require(
            decay <= final_decay <= 1,
            "target.args.final_decay",
            f"lie between target.args.decay={decay} and 1",
            final_decay,
        )
        require(beta > 0, "target.args.beta", "be above 0", beta)
        super().__init__()
        self.decay = decay
        self.final_decay = final_decay
        self.beta = beta

    def target_values(self, shape: EncoderShape) -> int:
        return shape.width

    def bind(self, encoder: Encoder) -> None:
        """See `Target.bind`. The teacher starts as a copy of the encoder."""
        self.teacher = copy.deepcopy(encoder).requires_grad_(False).eval()
        self.teacher.merge_tokens(0)  # merged tokens would have the same target

    def train(self, mode: bool = True) -> Self:
        """See `nn.Module.train`; the teacher stays in evaluation mode."""
        super().train(mode)
        for child in self.children():
            child.eval()
        return self

    def compute_target(self, inputs: TargetInputs) -> Tensor:
        return clean_features(self.teacher, inputs, mean=inputs.mean, std=inputs.std)

    def errors(self, prediction_BMP: Tensor, target_BMP: Tensor) -> Tensor:
        return feature_errors(prediction_BMP, target_BMP, beta=self.beta)

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
        return self.final_decay - (self.final_decay - self.decay) * (math.cos(math.pi * progress) + 1) / 2

    def state_metrics(self, encoder: Encoder) -> dict[str, Tensor]:
        """See `Target.state_metrics`: "ema_distance", relative to the norm of the encoder's weights."""
        pairs = list(zip(self.teacher.parameters(), encoder.parameters(), strict=True))
        with torch.no_grad():
            apart = torch.stack([(teacher - own).norm() for teacher, own in pairs]).norm()
            return {"ema_distance": apart / torch.stack([own.norm() for _, own in pairs]).norm()}


def clean_features(
    teacher: Encoder, inputs: TargetInputs, *, mean: tuple[float, ...], std: tuple[float, ...]
) -> Tensor:
    """Layer-normalized features of the whole clean clip at the target tokens, as target_BMD.

    Args:
        mean, std: normalization of the teacher's pixels.
    """
    patches_BNP = teacher.patches(inputs.clip_BCTHW, mean=mean, std=std)
    target_BMD = gather_tokens(teacher(patches_BNP, None), inputs.target_BM).float()
    return F.layer_norm(target_BMD, target_BMD.shape[2:])


def feature_errors(prediction_BMD: Tensor, target_BMD: Tensor, *, beta: float) -> Tensor:
    """Smooth L1 error of each value, error_BMD in float32."""
    return F.smooth_l1_loss(prediction_BMD.float(), target_BMD, reduction="none", beta=beta)
