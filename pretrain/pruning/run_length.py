"""Run-length pruning: drops tokens that repeat the one before them (RLT, arXiv 2411.05222)."""

import torch
from torch import Tensor

from kinemae.data_tools.config import require
from kinemae.pretrain.model.motion_energy import change, luma_grid
from kinemae.pretrain.model.tokens import Patch
from kinemae.pretrain.pruning.base import Pruning, TokenScores, check_keep


class RunLengthPruning(Pruning):
    """Keeps the first token of each run of similar tokens; the encoder embeds the length of the run.

    A token is static if it differs from the token before it at the same position by at most `threshold`. With
    a fixed `keep`, tokens that are not static are kept first, in random order, then static ones. A static
    token that is kept represents itself and the rest of its run.

    A run ends after `run_lengths` slices, so its length is always exact and slow changes are not lost. RLT
    compares the first frame of a token with the last one of the next token; here all frames are compared,
    each with that of the same index, in luma only.

    Args:
        keep: fraction of the tokens to keep; None: each clip keeps the tokens that are not static.
        threshold: mean absolute difference in grey levels, 0 to 255.
        run_lengths: number of embedded lengths, and length of the longest run.
    """

    def __init__(self, *, keep: float | None = None, threshold: float = 2.0, run_lengths: int = 8):
        check_keep(keep)
        require(threshold >= 0, "pruning.args.threshold", "be at least 0 grey levels", threshold)
        require(run_lengths >= 2, "pruning.args.run_lengths", "be at least 2", run_lengths)
        self.keep = keep
        self.threshold = threshold
        self.run_lengths = run_lengths

    def score_tokens(self, luma_BTHW: Tensor, patch: Patch) -> TokenScores:
        grid = luma_grid(luma_BTHW, patch)
        is_static_BtS = (change(luma_BTHW, patch) <= self.threshold).view(-1, grid.t, grid.per_slice)
        age_BS = torch.zeros_like(is_static_BtS[:, 0], dtype=torch.int64)  # slices since the run began
        ages = [age_BS]
        for is_static_BS in is_static_BtS.unbind(1)[1:]:
            age_BS = torch.where(is_static_BS, (age_BS + 1) % self.run_lengths, 0)
            ages.append(age_BS)
        is_kept_BtS = torch.stack(ages, dim=1) == 0
        run_BS = torch.ones_like(age_BS)
        runs = [run_BS]
        for is_next_kept_BS in is_kept_BtS.flip(1).unbind(1)[:-1]:
            run_BS = torch.where(is_next_kept_BS, 1, run_BS + 1)
            runs.append(run_BS)
        is_kept_BN = is_kept_BtS.flatten(1)
        return TokenScores(
            score_BN=is_kept_BN.float(),
            is_kept_BN=is_kept_BN,
            run_length_BN=torch.stack(runs[::-1], dim=1).flatten(1),
        )
