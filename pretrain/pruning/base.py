"""Pruning: which tokens of a clip say little. One file here is one way to tell.

In pretraining the budgets are fixed: pruning says which tokens fill them (`pretrain/token_selection.py`). In
fine-tuning and inference it shortens the sequence: to a fixed share, or to what each clip needs.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

from torch import Tensor

from kinemae.data_tools.config import require
from kinemae.pretrain.model.sizes import EncoderShape
from kinemae.pretrain.model.tokens import Patch


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenScores:
    """What the tokens of B full grids are scores.

    Attributes:
        score_BN: float32; tokens of a higher score are kept first, equal ones by chance.
        is_kept_BN: boolean, which are kept where their number may differ from clip to clip.
        run_length_BN: int64, for how many slices each token stands, itself included; None where it says
            nothing.
    """

    score_BN: Tensor
    is_kept_BN: Tensor
    run_length_BN: Tensor | None = None


class Pruning(ABC):
    """A way to tell.

    Attributes:
        keep: share of the tokens that is kept, above 0 and at most 1; None where each clip keeps what it
            needs, which pretraining refuses, since its budgets are fixed.
        is_learned: the encoder scores its own tokens (`shape.scorer`); `score_tokens` is then not called.
        run_lengths: how many lengths of runs the encoder is to embed; 0 for none.
    """

    keep: float | None = 1.0
    is_learned: bool = False
    run_lengths: int = 0

    def shape(self, shape: EncoderShape) -> EncoderShape:
        """The encoder with the parameters that this pruning needs; what it already has stays."""
        return replace(
            shape,
            run_lengths=shape.run_lengths or self.run_lengths,
            scorer=shape.scorer or self.is_learned,
        )

    @abstractmethod
    def score_tokens(self, luma_BTHW: Tensor, patch: Patch) -> TokenScores:
        """Look at clips' brightness, uint8 grey levels, and say what each token of the grid is scores."""


def check_keep(keep: float | None) -> None:
    """Refuse a share that keeps nothing, or more than all.

    Raises:
        ValueError: it is neither None nor above 0 and at most 1.
    """
    require(
        keep is None or 0 < keep <= 1,
        "pruning.args.keep",
        "be a share above 0 and at most 1, or null for as many as each clip needs",
        keep,
    )
