"""No pruning: every token is worth the same and is kept."""

import torch
from torch import Tensor

from kinemae.pretrain.model.motion_energy import grid_of
from kinemae.pretrain.model.tokens import Patch
from kinemae.pretrain.pruning.base import Pruning, Worth


class NoPruning(Pruning):
    """Keeps all."""

    def weigh(self, luma_BTHW: Tensor, patch: Patch) -> Worth:
        """See `Pruning.weigh`."""
        shape = (len(luma_BTHW), grid_of(luma_BTHW, patch).tokens)
        return Worth(
            score_BN=torch.zeros(shape, device=luma_BTHW.device),
            is_kept_BN=torch.ones(shape, dtype=torch.bool, device=luma_BTHW.device),
        )
