"""Token selection of a clip: masking, then pruning within fixed budgets."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from kinemae.data_tools.randomness import generator
from kinemae.pretrain.masking.base import Masking
from kinemae.pretrain.model.motion_energy import motion
from kinemae.pretrain.model.packing import kept_count
from kinemae.pretrain.model.token_positions import coordinates
from kinemae.pretrain.model.tokens import Patch, TokenGrid
from kinemae.pretrain.pruning.base import Pruning, TokenScores
from kinemae.pretrain.pruning.none import NoPruning


@dataclass(frozen=True, kw_only=True)
class TokenSelection:
    """The loader's `annotate`: index lists "visible" and "target" of a clip, and "run_length" if known.

    Pruning reduces the visible and the hidden tokens to the fraction `keep` with the highest scores; target
    tokens are chosen from the remaining hidden ones. With learned pruning the encoder gets all visible tokens
    and scores them itself.

    Attributes:
        seed: seed of the run. The selection is a function of the seed and of the clip's index in the run.
        clips_per_step: number of clips in a step, for maskings that depend on the step.
        masks: number of independent selections of each clip; config key `masks_per_clip`. With several, the
            lists have the dims (masks, tokens). The first one does not depend on their number.
        predict_ratio: config key `model.predict_ratio`.
        predict: config key `model.predict`.
    """

    masking: Masking
    grid: TokenGrid
    patch: Patch
    seed: int
    pruning: Pruning = NoPruning()  # noqa: RUF009 - it has no state
    clips_per_step: int = 1
    masks: int = 1
    predict_ratio: float = 1.0
    predict: Literal["random", "running_cell"] = "random"

    def counts(self, step: int = 0) -> tuple[int, int]:
        """(K, M): number of tokens of a clip that are embedded and predicted at a step."""
        visible, hidden = self.masking.at(step).counts(self.grid)
        keep = 1.0 if self.pruning.is_learned else self._keep
        return kept_count(visible, keep), kept_count(hidden, self._keep * self.predict_ratio)

    def encoded(self, step: int = 0) -> int:
        """Number of tokens in the blocks: fewer than K with learned pruning."""
        return kept_count(self.masking.at(step).counts(self.grid)[0], self._keep)

    @property
    def needs_luma(self) -> bool:
        """True if the selection depends on the luma of the clip."""
        return self.masking.needs_motion or self._scores_tokens

    def __call__(self, luma_THW: Tensor | None, clip_index: int) -> dict[str, Tensor]:
        """Select the tokens of one clip; `luma_THW` may be None if `needs_luma` is false."""
        step = clip_index // self.clips_per_step
        assert luma_THW is not None or not self.needs_luma
        motion_N = scores = None
        if luma_THW is not None and self.masking.at(step).needs_motion:
            motion_N = motion(luma_THW[None], self.patch)[0]
        if luma_THW is not None and self._scores_tokens:
            scores = self.pruning.score_tokens(luma_THW[None], self.patch)
        selected = []
        for mask in range(self.masks):
            purpose = f"masking/{mask}" if mask else "masking"
            chance = generator(self.seed, purpose=purpose, sample=clip_index)
            selected.append(self._select(step, chance, motion_N, scores))
        if self.masks == 1:
            return selected[0]
        return {name: torch.stack([one[name] for one in selected]) for name in selected[0]}

    def _select(
        self, step: int, chance: torch.Generator, motion_N: Tensor | None, scores: TokenScores | None
    ) -> dict[str, Tensor]:
        """Draw one selection."""
        visible_K, hidden_M = self.masking.at(step).split(self.grid, chance, motion_N)
        visible_count, target_count = self.counts(step)
        if scores is not None:
            visible_K = _highest_scores(visible_K, visible_count, scores, chance)
            hidden_M = _highest_scores(hidden_M, kept_count(len(hidden_M), self._keep), scores, chance)
        if self.predict == "running_cell":
            hidden_M = running_cell_first(hidden_M, self.grid, chance)
        found = {"visible": visible_K, "target": hidden_M[:target_count]}
        if scores is None or scores.run_length_BN is None:
            return found
        return {**found, "run_length": scores.run_length_BN[0, visible_K]}

    @property
    def _scores_tokens(self) -> bool:
        return not self.pruning.is_learned and not isinstance(self.pruning, NoPruning)

    @property
    def _keep(self) -> float:
        assert self.pruning.keep is not None, "fixed budgets need a fixed fraction"
        return self.pruning.keep


def running_cell_first(hidden_M: Tensor, grid: TokenGrid, generator: torch.Generator) -> Tensor:
    """Reorder hidden tokens so that those of a running cell come first (arXiv 2303.16727, section 3.2).

    In each cell of 2 x 2 positions two successive ones, clockwise, are chosen. They are drawn for the first
    slice and advance by one position per slice, so each position is chosen twice in four slices. The order
    within both parts is kept. Cells at an odd edge are cropped.
    """
    slice_M, row_M, column_M = coordinates(hidden_M, grid)
    start = torch.randint(4, (), generator=generator)
    is_chosen_M = (2 * (row_M % 2) + column_M % 2 - slice_M - start) % 4 < 2
    return torch.cat([hidden_M[is_chosen_M], hidden_M[~is_chosen_M]])


def _highest_scores(index_K: Tensor, count: int, scores: TokenScores, generator: torch.Generator) -> Tensor:
    """The highest-scored tokens in their order; ties are broken at random."""
    if count == len(index_K):
        return index_K  # without a draw, so that later draws equal those without pruning
    drawn_K = torch.randperm(len(index_K), generator=generator)
    best_K = drawn_K[scores.score_BN[0, index_K[drawn_K]].argsort(descending=True, stable=True)[:count]]
    return index_K[best_K.sort().values]
