"""What those who look at a run share: when they look, and that looking changes nothing."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Due at the first report after each multiple of some steps, and after the last step.

    A function of the report alone, so that every process knows it and a run that goes on does the same.

    Attributes:
        every_steps: at least 1.
        last_step: 0-based.
    """

    every_steps: int
    last_step: int

    def is_due(self, first_step: int, last_step: int) -> bool:
        """Whether it is due at the report of these steps, both 0-based and both done."""
        passes_multiple = (last_step + 1) // self.every_steps > first_step // self.every_steps
        return last_step == self.last_step or passes_multiple


@contextmanager
def at_rest(module: nn.Module) -> Iterator[None]:
    """Without gradients and in evaluation mode; afterwards each part is in the mode that it was in.

    Compiled parts run as they are written: what is looked at has other sizes than what is trained on.
    """
    is_compiled = any(part._compiled_call_impl is not None for part in module.modules())
    was_training = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        with torch.no_grad(), torch.compiler.set_stance("force_eager") if is_compiled else nullcontext():
            yield
    finally:
        for part, mode in was_training:
            part.training = mode
