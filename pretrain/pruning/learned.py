"""Learned pruning: the encoder scores its embedded tokens and keeps the highest-scored."""

from torch import Tensor

from kinemae.pretrain.model.tokens import Patch
from kinemae.pretrain.pruning.base import Pruning, TokenScores, check_keep


class LearnedPruning(Pruning):
    """Keeps the tokens with the highest scores of a small MLP.

    Kept tokens are gated by their score, so the scorer gets a gradient from the loss (arXiv 2404.02258; see
    `model/scorer.py`).

    Args:
        keep: fraction of the tokens to keep, rounded; None: each clip keeps the tokens above the learned
            threshold, at least one.
    """

    is_learned = True

    def __init__(self, *, keep: float | None = 0.5):
        check_keep(keep)
        self.keep = keep

    def score_tokens(self, luma_BTHW: Tensor, patch: Patch) -> TokenScores:
        """Not used: `Encoder.scorer` scores the tokens."""
        raise NotImplementedError("the encoder scores its own tokens")
