"""The classifier: an encoder that sees every token of a clip, and a head on top."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from data_tools.randomness import ClipRandom
from data_tools.stream.batch import ClipBatch
from finetune.heads.base import Head
from finetune.mixing import MixedClips, Mixer
from pretrain.model.encoder import Encoder
from pretrain.model.tokens import MEAN, STD, normalise, patchify


class Classifier(nn.Module):
    """Clips in, class scores or a loss out.

    Args:
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
        freeze: bool = False,
        label_smoothing: float = 0.0,
        mixer: Mixer | None = None,
        mean: tuple[float, ...] = MEAN,
        std: tuple[float, ...] = STD,
    ):
        super().__init__()
        self.encoder = encoder.requires_grad_(not freeze)
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

        The guess for a mixed clip is held against the label that has the larger share.
        """
        if self.training and self.mixer is not None:
            return self._mixed(batch, draws, self.mixer.mix(batch, draws))
        logits_BY = self.logits(batch.clip_BCTHW, draws).float()
        return {
            "loss": self._loss(logits_BY, batch.label_B),
            "correct": (logits_BY.argmax(dim=1) == batch.label_B).float(),
        }

    def _mixed(self, batch: ClipBatch, draws: ClipRandom, mixed: MixedClips) -> dict[str, Tensor]:
        logits_BY = self.logits(mixed.clip_BCTHW, draws).float()
        loss_B = torch.lerp(
            self._loss(logits_BY, mixed.partner_label_B), self._loss(logits_BY, batch.label_B), mixed.share_B
        )
        larger_B = torch.where(mixed.share_B >= 0.5, batch.label_B, mixed.partner_label_B)
        return {"loss": loss_B, "correct": (logits_BY.argmax(dim=1) == larger_B).float()}

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
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freeze):
            tokens_BND = self.tokens(clip_BCTHW, draws)
        return self.head(tokens_BND, draws)

    def tokens(self, clip_BCTHW: Tensor, draws: ClipRandom | None = None) -> Tensor:
        """What the encoder makes of clips, as tokens_BND."""
        patches_BNP = normalise(patchify(clip_BCTHW, self.encoder.shape.patch), self.mean, self.std)
        return self.encoder(patches_BNP, None, draws)
