"""Pruning: dropping tokens with little information. Each file in this folder is one kind.

In pretraining the token budgets are fixed, and pruning selects the tokens (`pretrain/token_selection.py`). In
fine-tuning and inference it shortens the sequence, to a fixed fraction or by a threshold per clip.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

from torch import Tensor

from kinemae.data_tools.config import require
from kinemae.pretrain.model.sizes import EncoderShape
from kinemae.pretrain.model.tokens import Patch


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenScores:
    """Scores of the tokens of B full grids.

    Attributes:
        score_BN: float32; higher-scored tokens are kept first, in random order among equal scores.
        is_kept_BN: boolean, the tokens to keep if their number may differ between clips.
        run_length_BN: int64, number of slices that each token represents; None if unknown.
    """

    score_BN: Tensor
    is_kept_BN: Tensor
    run_length_BN: Tensor | None = None


class Pruning(ABC):
    """A pruning kind.

    Attributes:
        keep: fraction of the tokens to keep, above 0 and at most 1; None for a number per clip, which
            pretraining does not support.
        is_learned: the encoder scores its own tokens (`shape.scorer`), and `score_tokens` is not called.
        run_lengths: number of run lengths that the encoder embeds; 0 for none.
    """

    keep: float | None = 1.0
    is_learned: bool = False
    run_lengths: int = 0

    def shape(self, shape: EncoderShape) -> EncoderShape:
        """The shape with the parameters that this pruning needs; existing ones are kept."""
        return replace(
            shape, run_lengths=shape.run_lengths or self.run_lengths, scorer=shape.scorer or self.is_learned
        )

    @abstractmethod
    def score_tokens(self, luma_BTHW: Tensor, patch: Patch) -> TokenScores:
        """Score all tokens of the grid by the luma of the clips, uint8."""


def check_keep(keep: float | None) -> None:
    """Check the fraction of tokens to keep.

    Raises:
        ValueError: it is neither None nor above 0 and at most 1.
    """
    require(
        keep is None or 0 < keep <= 1,
        "pruning.args.keep",
        "be a fraction above 0 and at most 1, or null for a number per clip",
        keep,
    )
