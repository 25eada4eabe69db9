"""Motion-led masking: what moves is more likely to be hidden, or to be seen."""

from typing import Literal, get_args

import torch
from torch import Tensor

from kinemae.data_tools.config import require
from kinemae.pretrain.masking.base import Masking, check_ratio, over_time, split_counts
from kinemae.pretrain.model.tokens import TokenGrid

Side = Literal["hidden", "visible"]
STILL = 1.0
"""Grey levels; less motion than this is sensor and codec noise, and counts the same."""


class MotionMasking(Masking):
    """Draws the hidden or the visible tokens without replacement, each with odds by its motion.

    The odds are motion ** (1 / temperature): the top of log(motion) / temperature plus Gumbel noise is such
    a draw (arXiv 1903.06059). So only the proportions of motion inside the clip matter, and a
    still clip is masked evenly. Hiding what moves is the idea of MGM (arXiv 2308.12962), which moves boxes
    along motion vectors; seeing what moves that of AdaMAE (arXiv 2211.09120), whose odds are learned, and
    EVEREST (arXiv 2211.10636). Motion is here the change of brightness from frame to frame.

    Args:
        ratio: share to hide, rounded down: of a slice's places for tubes, else of the clip's tokens.
        led: the side that is drawn by motion: "hidden" predicts what moves, "visible" sees it.
        temperature: near 0 those that move most are taken, 1 draws in proportion to motion, and the larger
            it is, the more even the odds.
        tubes: draw places by their mean motion and hide them in every slice, as tube masking does, so that
            a still patch cannot be copied from a neighbouring slice.
    """

    needs_motion = True

    def __init__(
        self, *, ratio: float = 0.9, led: str = "hidden", temperature: float = 1.0, tubes: bool = True
    ):
        check_ratio(ratio)
        known = get_args(Side)
        require(led in known, "masking.args.led", f"be one of {', '.join(known)}", led)
        require(temperature > 0, "masking.args.temperature", "be above 0", temperature)
        self.ratio = ratio
        self.led = led
        self.temperature = temperature
        self.tubes = tubes

    def counts(self, grid: TokenGrid) -> tuple[int, int]:
        """See `Masking.counts`."""
        return split_counts(self.ratio, grid, copies=grid.t if self.tubes else 1)

    def split(
        self, grid: TokenGrid, generator: torch.Generator, motion_N: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """See `Masking.split`."""
        assert motion_N is not None, "needs_motion"
        visible, hidden = (count // (grid.t if self.tubes else 1) for count in self.counts(grid))
        motion_X = motion_N.view(grid.t, -1).mean(dim=0) if self.tubes else motion_N
        order_X = self._most_moving_first(motion_X, generator)
        if self.led == "hidden":
            hidden_X, visible_X = order_X.split([hidden, visible])
        else:
            visible_X, hidden_X = order_X.split([visible, hidden])
        visible_X = visible_X.sort().values
        if self.tubes:
            visible_X, hidden_X = over_time(visible_X, grid), over_time(hidden_X, grid)
        return visible_X, hidden_X[torch.randperm(len(hidden_X), generator=generator)]

    def _most_moving_first(self, motion_X: Tensor, generator: torch.Generator) -> Tensor:
        chance_X = torch.rand(len(motion_X), generator=generator, dtype=torch.float64)
        gumbel_X = -torch.log(-torch.log(chance_X))
        odds_X = motion_X.double().clamp(min=STILL).log() / self.temperature
        return (odds_X + gumbel_X).argsort(descending=True)
