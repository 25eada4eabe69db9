"""The classifier: an encoder that sees a clip's tokens, all or the kept ones, and a head on top."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from kinemae.data_tools.randomness import ClipRandom
from kinemae.data_tools.stream.batch import ClipBatch
from kinemae.finetune.features import FeatureReader, Features
from kinemae.finetune.heads.base import Head
from kinemae.finetune.mixing import MixedClips, Mixer
from kinemae.pretrain.model.encoder import Encoder
from kinemae.pretrain.model.scorer import with_gradient_of
from kinemae.pretrain.model.tokens import MEAN, STD
from kinemae.pretrain.pruning.base import Pruning
from kinemae.pretrain.pruning.none import NoPruning


class Classifier(nn.Module):
    """Clips in, class scores or a loss out.

    Args:
        pruning: which tokens of a clip the encoder sees; None for all.
        freeze: the head alone learns; the encoder runs without gradients and never drops a path.
        label_smoothing: share of the target that is spread over all classes.
        mixer: mixes the clips in training; None leaves them alone.
        mean: colours that the encoder's pixels are normalised by, on a scale of 0 to 1.
        std: likewise.
    """

    def __init__(  # noqa: PLR0913 - all but the two modules by name
        self,
        encoder: Encoder,
        head: Head,
        *,
        pruning: Pruning | None = None,
        freeze: bool = False,
        label_smoothing: float = 0.0,
        mixer: Mixer | None = None,
        mean: tuple[float, ...] = MEAN,
        std: tuple[float, ...] = STD,
    ):
        super().__init__()
        self.pruning = pruning or NoPruning()
        self.encoder = encoder.requires_grad_(not freeze)
        _freeze_what_has_no_say(encoder, self.pruning)
        self.head = head
        self.freeze = freeze
        self.label_smoothing = label_smoothing
        self.mixer = mixer
        self.mean = mean
        self.std = std
        self.train()

    def train(self, mode: bool = True) -> "Classifier":
        """Choose training or evaluation; a frozen encoder stays in evaluation."""
        super().train(mode)
        self.encoder.train(mode and not self.freeze)
        return self

    def forward(self, batch: ClipBatch, draws: ClipRandom) -> dict[str, Tensor]:
        """Per-clip values of shape (B,): the cross entropy as "loss", and 1 where the guess is "correct".

        The guess for a mixed clip is held against the label that has the larger share. With pruning,
        "kept" is the share of the tokens that the encoder saw.
        """
        is_mixed = self.training and self.mixer is not None
        mixed = self.mixer.mix(batch, draws) if is_mixed and self.mixer else None
        features = self.features(batch.clip_BCTHW if mixed is None else mixed.clip_BCTHW, draws)
        logits_BY = self.head(features.tokens_BND, draws, features.weight_BN).float()
        values = self._scored(logits_BY, batch, mixed)
        if features.threshold_loss_B is not None:
            values["loss"] = with_gradient_of(values["loss"], features.threshold_loss_B)
        if not isinstance(self.pruning, NoPruning):
            values["kept"] = features.kept_B / self.encoder.grid.tokens
        return values

    def _scored(self, logits_BY: Tensor, batch: ClipBatch, mixed: MixedClips | None) -> dict[str, Tensor]:
        loss_B, label_B = self._loss(logits_BY, batch.label_B), batch.label_B
        if mixed is not None:
            loss_B = torch.lerp(self._loss(logits_BY, mixed.partner_label_B), loss_B, mixed.share_B)
            label_B = torch.where(mixed.share_B >= 0.5, label_B, mixed.partner_label_B)
        return {"loss": loss_B, "correct": (logits_BY.argmax(dim=1) == label_B).float()}

    def _loss(self, logits_BY: Tensor, label_B: Tensor) -> Tensor:
        return functional.cross_entropy(
            logits_BY, label_B, reduction="none", label_smoothing=self.label_smoothing
        )

    def logits(self, clip_BCTHW: Tensor, draws: ClipRandom | None = None) -> Tensor:
        """Score the classes, as logits_BY.

        Args:
            clip_BCTHW: uint8 RGB.
            draws: the clips' randomness in training, None in evaluation.
        """
        features = self.features(clip_BCTHW, draws)
        return self.head(features.tokens_BND, draws, features.weight_BN)

    def features(self, clip_BCTHW: Tensor, draws: ClipRandom | None = None) -> Features:
        """What the encoder makes of clips."""
        reader = FeatureReader(self.encoder, self.pruning, mean=self.mean, std=self.std)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freeze):
            return reader.read(clip_BCTHW, draws)


def _freeze_what_has_no_say(encoder: Encoder, pruning: Pruning) -> None:
    """A scorer that is not asked, and the threshold of one that is not told a share, get no gradient."""
    if encoder.shape.scorer and not pruning.is_learned:
        encoder.scorer.requires_grad_(False)
    elif encoder.shape.scorer and pruning.keep is None:
        encoder.scorer.threshold_1.requires_grad_(False)
