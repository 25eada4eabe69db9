"""The classifier: an encoder that sees every token of a clip, and a head on top."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from data_tools.randomness import ClipRandom
from data_tools.stream.batch import ClipBatch
from finetune.heads.base import Head
from pretrain.model.encoder import Encoder
from pretrain.model.tokens import MEAN, STD, normalise, patchify


class Classifier(nn.Module):
    """Clips in, class scores or a loss out.

    Args:
        freeze: the head alone learns; the encoder runs without gradients and never drops a path.
        label_smoothing: share of the target that is spread over all classes.
        mean: colours that the encoder's pixels are normalised by, on a scale of 0 to 1.
        std: likewise.
    """

    def __init__(
        self,
        encoder: Encoder,
        head: Head,
        *,
        freeze: bool = False,
        label_smoothing: float = 0.0,
        mean: tuple[float, ...] = MEAN,
        std: tuple[float, ...] = STD,
    ):
        super().__init__()
        self.encoder = encoder.requires_grad_(not freeze)
        self.head = head
        self.freeze = freeze
        self.label_smoothing = label_smoothing
        self.mean = mean
        self.std = std
        self.train()

    def train(self, mode: bool = True) -> "Classifier":
        """Choose training or evaluation; a frozen encoder stays in evaluation."""
        super().train(mode)
        self.encoder.train(mode and not self.freeze)
        return self

    def forward(self, batch: ClipBatch, draws: ClipRandom) -> dict[str, Tensor]:
        """Per-clip values of shape (B,): the cross entropy as "loss", and 1 where the guess is "correct"."""
        logits_BY = self.logits(batch.clip_BCTHW, draws).float()
        loss_B = functional.cross_entropy(
            logits_BY, batch.label_B, reduction="none", label_smoothing=self.label_smoothing
        )
        return {"loss": loss_B, "correct": (logits_BY.argmax(dim=1) == batch.label_B).float()}

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
