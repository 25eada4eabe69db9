"""What those who look at a run share: when they look, and that looking changes nothing."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(kw_only=True)
class Schedule:
    """Due at the first report after each multiple of some steps, and after the last step.

    Attributes:
        every_steps: at least 1.
        last_step: 0-based.
    """

    every_steps: int
    last_step: int
    _page: int | None = None

    def is_due(self, step: int) -> bool:
        """Whether it is due at this report, `step` being the last one done; ask once a report."""
        page = (step + 1) // self.every_steps
        is_new_page = page > (step // self.every_steps if self._page is None else self._page)
        self._page = page
        return step == self.last_step or is_new_page


@contextmanager
def at_rest(module: nn.Module) -> Iterator[None]:
    """Without gradients and in evaluation mode; afterwards each part is in the mode that it was in."""
    was_training = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part, mode in was_training:
            part.training = mode
