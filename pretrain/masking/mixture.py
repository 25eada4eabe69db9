"""Mixture of maskings: each step draws one of them."""

from bisect import bisect_right
from itertools import accumulate
from typing import Any

from kinemae.data_tools.randomness import derived_seed
from kinemae.data_tools.weighted_components import build_weighted
from kinemae.pretrain.masking.base import Masking, StepMasking

SEED_RANGE = 2**63
"""`derived_seed` is below this."""


class MixtureMasking(StepMasking):
    """Draws the masking of each step, with probabilities in proportion to the weights.

    All clips of a step have the same masking, so the shapes of a step are static even if the parts have
    different numbers of tokens. The draw is a function of the step. V-JEPA uses two kinds of masks for each
    clip (arXiv 2404.08471, section 3.2); here a step has one of them.

    Args:
        parts: {"weight": ..., "args": {...}} by the name of a masking: its weight, 1 by default, and its
            arguments; or a list of names.
        seed: seed of the sequence of maskings.
    """

    def __init__(self, *, parts: dict[str, Any] | list[str] | str, seed: int = 0):
        built = build_weighted(
            "kinemae.pretrain.masking", parts, Masking, key="masking.args.parts", whole="mixture"
        )
        super().__init__([masking for _, masking in built.values()])
        self.bounds = list(accumulate(weight for weight, _ in built.values()))
        self.seed = seed

    def at(self, step: int) -> Masking:
        drawn = derived_seed(self.seed, purpose="masking/part", step=step) / SEED_RANGE * self.bounds[-1]
        return self.maskings[bisect_right(self.bounds[:-1], drawn)].at(step)
