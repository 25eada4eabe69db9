"""Motion masking: moving tokens are more likely to be hidden, or to be visible."""

from typing import Literal, get_args

import torch
from torch import Tensor

from kinemae.data_tools.config import require
from kinemae.pretrain.masking.base import RatioMasking, over_time, shuffled
from kinemae.pretrain.model.motion_energy import STILL
from kinemae.pretrain.model.tokens import TokenGrid

Side = Literal["hidden", "visible"]


class MotionMasking(RatioMasking):
    """Draws the hidden or the visible tokens without replacement, with weights by their motion.

    The weights are motion ** (1 / temperature), drawn as the top of log(weight) plus Gumbel noise
    (arXiv 1903.06059). Motion is the change of luma from frame to frame, relative within the clip. Hiding
    moving tokens follows MGM (arXiv 2308.12962), which moves boxes along motion vectors. Showing them follows
    AdaMAE (arXiv 2211.09120), whose weights are learned, and EVEREST (arXiv 2211.10636).

    Args:
        ratio: fraction to hide, rounded down: of a slice's positions with `tubes`, else of the clip's tokens.
        side: the side that is drawn by motion: "hidden" predicts moving tokens, "visible" shows them.
        temperature: near 0 takes the tokens with the most motion, 1 draws in proportion to motion, larger
            values draw more evenly.
        tubes: draw spatial positions by their mean motion and hide them in all slices, as tube masking does.
        by_slice: divide the motion by its mean in the slice. Then motion of the whole frame does not hide
            whole slices, and a frame that is repeated does not get most of the visible tokens. Set it with
            `tubes=False` and slices of one frame.
    """

    needs_motion = True

    def __init__(
        self,
        *,
        ratio: float = 0.9,
        side: str = "hidden",
        temperature: float = 1.0,
        tubes: bool = True,
        by_slice: bool = False,
    ):
        super().__init__(ratio=ratio)
        known = get_args(Side)
        require(side in known, "masking.args.side", f"be one of {', '.join(known)}", side)
        require(temperature > 0, "masking.args.temperature", "be above 0", temperature)
        self.side = side
        self.temperature = temperature
        self.tubes = tubes
        self.by_slice = by_slice

    def copies(self, grid: TokenGrid) -> int:
        return grid.t if self.tubes else 1

    def split(
        self, grid: TokenGrid, generator: torch.Generator, motion_N: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        assert motion_N is not None, "needs_motion"
        visible, hidden = (count // self.copies(grid) for count in self.counts(grid))
        motion_tS = motion_N.view(grid.t, -1)
        if self.by_slice:
            motion_tS = motion_tS.clamp(min=STILL)
            motion_tS = motion_tS / motion_tS.mean(dim=1, keepdim=True)
        motion_X = motion_tS.mean(dim=0) if self.tubes else motion_tS.flatten()
        order_X = self._draw(motion_X if self.by_slice else motion_X.clamp(min=STILL), generator)
        if self.side == "hidden":
            hidden_X, visible_X = order_X.split([hidden, visible])
        else:
            visible_X, hidden_X = order_X.split([visible, hidden])
        visible_X = visible_X.sort().values
        if self.tubes:
            visible_X, hidden_X = over_time(visible_X, grid), over_time(hidden_X, grid)
        return visible_X, shuffled(hidden_X, generator)

    def _draw(self, motion_X: Tensor, generator: torch.Generator) -> Tensor:
        uniform_X = torch.rand(len(motion_X), generator=generator, dtype=torch.float64)
        gumbel_X = -torch.log(-torch.log(uniform_X))
        log_weight_X = motion_X.double().log() / self.temperature
        return (log_weight_X + gumbel_X).argsort(descending=True)
