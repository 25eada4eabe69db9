"""Ratio jitter: another masking whose ratio changes from step to step."""

from typing import Any

import torch
from torch import Tensor

from kinemae.data_tools.components import Component, build_component, component_names
from kinemae.data_tools.config import require
from kinemae.data_tools.randomness import derived_seed
from kinemae.pretrain.masking.base import Masking
from kinemae.pretrain.model.tokens import TokenGrid

FOLDER = "kinemae.pretrain.masking"


class JitterMasking(Masking):
    """Hides more at one step and less at another, so that the encoder is not used to one number of tokens.

    All clips of a step share its ratio, one of few levels, each as likely as the others: so only a few
    shapes occur. Which one, follows from the number of the step alone. A fixed ratio is what all peers
    have; that it is drawn anew is our own.

    Args:
        of: the name of the masking whose ratio changes.
        least, most: the ratios between which the levels lie evenly, both among them.
        levels: how many.
        args: that masking's arguments, without `ratio`.
        seed: another one gives another order of the levels.
    """

    def __init__(
        self,
        *,
        of: str,
        least: float,
        most: float,
        levels: int = 3,
        args: dict[str, Any] | None = None,
        seed: int = 0,
    ):
        given = {} if args is None else args
        require(isinstance(given, dict), "masking.args.args", "be that masking's arguments by name", given)
        known = [name for name in component_names(FOLDER) if name != "jitter"]
        require(of in known, "masking.args.of", f"be one of {', '.join(known)}", of)
        require("ratio" not in given, "masking.args.args", "not hold ratio, which least and most set", given)
        require(0 < least < most < 1, "masking.args", "hold 0 < least < most < 1", (least, most))
        require(levels >= 2, "masking.args.levels", "be at least 2", levels)
        ratios = [least + (most - least) * level / (levels - 1) for level in range(levels)]
        self.seed = seed
        self.maskings = tuple(
            build_component(
                FOLDER, Component(name=of, args={**given, "ratio": ratio}), Masking, key="masking.args"
            )
            for ratio in ratios
        )
        self.needs_motion = self.maskings[0].needs_motion

    def at(self, step: int) -> Masking:
        """See `Masking.at`."""
        return self.maskings[derived_seed(self.seed, purpose="masking/level", step=step) % len(self.maskings)]

    def counts(self, grid: TokenGrid) -> tuple[int, int]:
        """See `Masking.counts`: those of the first step, when all levels can be had."""
        for masking in self.maskings:
            masking.counts(grid)
        return self.at(0).counts(grid)

    def split(
        self, grid: TokenGrid, generator: torch.Generator, motion_N: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """See `Masking.split`: as at the first step."""
        return self.at(0).split(grid, generator, motion_N)
