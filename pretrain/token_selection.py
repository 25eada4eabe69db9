"""Which tokens of a clip are embedded, and which are predicted: masking, led by pruning, within budgets."""

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
    """The loader's `annotate`: gives a clip the index lists "visible" and "target"; "run_length" where it is
    known.

    Pruning lowers both budgets to its `keep`: of the visible tokens those that are worth most stay, of the
    hidden ones likewise, and the wanted ones are chosen from these. A `keep` of 1 changes nothing. With a
    learned pruner all of the visible tokens go to the encoder, which scores them itself.

    Attributes:
        seed: the run's seed. The split is a function of it and the clip's place in the run.
        clips_per_step: how many clips make a step, for what depends on the step.
        predict_ratio: config key `model.predict_ratio`.
        predict: config key `model.predict`.
    """

    masking: Masking
    grid: TokenGrid
    patch: Patch
    seed: int
    pruning: Pruning = NoPruning()  # noqa: RUF009 - it has no state
    clips_per_step: int = 1
    predict_ratio: float = 1.0
    predict: Literal["random", "running_cell"] = "random"

    def counts(self, step: int = 0) -> tuple[int, int]:
        """(K, M): how many tokens of a clip are embedded and predicted at a step."""
        visible, hidden = self.masking.at(step).counts(self.grid)
        keep = 1.0 if self.pruning.is_learned else self._keep
        return kept_count(visible, keep), kept_count(hidden, self._keep * self.predict_ratio)

    def encoded(self, step: int = 0) -> int:
        """How many of the embedded tokens go on: fewer than K where the encoder itself chooses."""
        return kept_count(self.masking.at(step).counts(self.grid)[0], self._keep)

    @property
    def needs_luma(self) -> bool:
        """Whether the choice depends on the clip's grey levels."""
        return self.masking.needs_motion or self._scores_tokens

    def __call__(self, luma_THW: Tensor | None, clip_index: int) -> dict[str, Tensor]:
        """Choose for one clip; its grey levels may be None where `needs_luma` is false."""
        step = clip_index // self.clips_per_step
        chance = generator(self.seed, purpose="masking", sample=clip_index)
        masking = self.masking.at(step)
        assert luma_THW is not None or not self.needs_luma
        motion_N = None
        if luma_THW is not None and masking.needs_motion:
            motion_N = motion(luma_THW[None], self.patch)[0]
        visible_K, hidden_M = masking.split(self.grid, chance, motion_N)
        visible_count, target_count = self.counts(step)
        scores = None
        if luma_THW is not None and self._scores_tokens:
            scores = self.pruning.score_tokens(luma_THW[None], self.patch)
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
        assert self.pruning.keep is not None, "fixed budgets need a fixed share: checked with the config"
        return self.pruning.keep


def running_cell_first(hidden_M: Tensor, grid: TokenGrid, generator: torch.Generator) -> Tensor:
    """Reorder hidden tokens so that those of a running cell come first (arXiv 2303.16727, section 3.2).

    In each cell of 2 x 2 places two are chosen, neighbours in the order left to right, top to bottom and
    around again. Which two, is drawn for the first slice and runs on by one from slice to slice, so that
    over four slices every place is chosen twice. Within each part the order stays as it was. Cells at an
    odd edge are cut off.
    """
    slice_M, row_M, column_M = coordinates(hidden_M, grid)
    start = torch.randint(4, (), generator=generator)
    is_chosen_M = (2 * (row_M % 2) + column_M % 2 - slice_M - start) % 4 < 2
    return torch.cat([hidden_M[is_chosen_M], hidden_M[~is_chosen_M]])


def _highest_scores(index_K: Tensor, count: int, scores: TokenScores, generator: torch.Generator) -> Tensor:
    """The tokens that are worth most, in the order they came; which of equal ones, is drawn."""
    if count == len(index_K):
        return index_K  # and no draw, so that later ones are what they would be without pruning
    drawn_K = torch.randperm(len(index_K), generator=generator)
    best_K = drawn_K[scores.score_BN[0, index_K[drawn_K]].argsort(descending=True, stable=True)[:count]]
    return index_K[best_K.sort().values]
