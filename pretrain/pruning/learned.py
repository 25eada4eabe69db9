"""Learned pruning: the encoder scores its embedded tokens and goes on with the best."""

from torch import Tensor

from kinemae.pretrain.model.tokens import Patch
from kinemae.pretrain.pruning.base import Pruning, TokenScores, check_keep


class LearnedPruning(Pruning):
    """All tokens of the budget are embedded, a small MLP scores them, those of the highest score are kept.

    Kept tokens are gated by their score, so the loss teaches the scorer (arXiv 2404.02258; see
    `model/scorer.py`). Which tokens matter is then found by learning, not by what moves.

    Args:
        keep: share of the tokens to keep, rounded; None: each clip keeps what scores above the threshold
            that the scorer has learned, at least one token.
    """

    is_learned = True

    def __init__(self, *, keep: float | None = 0.5):
        check_keep(keep)
        self.keep = keep

    def score_tokens(self, luma_BTHW: Tensor, patch: Patch) -> TokenScores:
        """Never asked: the pixels alone do not say; `Encoder.scorer` does."""
        raise NotImplementedError("the encoder scores its own tokens")
