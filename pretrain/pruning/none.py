"""No pruning: all tokens are kept."""

import torch
from torch import Tensor

from kinemae.pretrain.model.motion_energy import luma_grid
from kinemae.pretrain.model.tokens import Patch
from kinemae.pretrain.pruning.base import Pruning, TokenScores


class NoPruning(Pruning):
    """Keeps all tokens."""

    def score_tokens(self, luma_BTHW: Tensor, patch: Patch) -> TokenScores:
        shape = (len(luma_BTHW), luma_grid(luma_BTHW, patch).tokens)
        return TokenScores(
            score_BN=torch.zeros(shape, device=luma_BTHW.device),
            is_kept_BN=torch.ones(shape, dtype=torch.bool, device=luma_BTHW.device),
        )
