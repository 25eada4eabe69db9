"""Motion pruning: the tokens with the most motion are kept."""

import torch
from torch import Tensor

from kinemae.data_tools.config import require
from kinemae.pretrain.model.motion_energy import luma_grid, motion
from kinemae.pretrain.model.tokens import Patch
from kinemae.pretrain.pruning.base import Pruning, TokenScores, check_keep


class MotionPruning(Pruning):
    """Keeps a fraction of the tokens, or those with motion above a threshold.

    EVEREST (arXiv 2211.10636) uses the distance of embeddings between frames instead of the change of luma.

    Args:
        keep: fraction of the tokens to keep; None: each clip keeps those above `threshold`.
        threshold: grey levels, 0 to 255, if `keep` is None. At least as many tokens as in a slice are kept,
            those with the most motion.
    """

    def __init__(self, *, keep: float | None = None, threshold: float | None = None):
        check_keep(keep)
        require(
            (keep is None) != (threshold is None),
            "pruning.args",
            "hold either keep (a fraction) or threshold (grey levels)",
            {"keep": keep, "threshold": threshold},
        )
        require(
            threshold is None or threshold >= 0,
            "pruning.args.threshold",
            "be at least 0 grey levels",
            threshold,
        )
        self.keep = keep
        self.threshold = threshold

    def score_tokens(self, luma_BTHW: Tensor, patch: Patch) -> TokenScores:
        grid = luma_grid(luma_BTHW, patch)
        score_BN = motion(luma_BTHW, patch)
        order_BN = score_BN.argsort(dim=1, descending=True, stable=True)
        always = grid.per_slice if self.keep is None else max(1, round(self.keep * grid.tokens))
        is_kept_BN = torch.zeros_like(score_BN, dtype=torch.bool).scatter(1, order_BN[:, :always], True)
        if self.threshold is not None:
            is_kept_BN |= score_BN > self.threshold
        return TokenScores(score_BN=score_BN, is_kept_BN=is_kept_BN)
