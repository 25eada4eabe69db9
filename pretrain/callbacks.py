"""Helpers of callbacks: schedule and evaluation mode."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from kinemae.pretrain.model.blocks import as_in_evaluation


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Schedule of a callback: the first report after each multiple of `every_steps`, and the last step.

    It depends only on the steps of the report, so that every process and every continued run agrees.

    Attributes:
        every_steps: at least 1.
        last_step: 0-based.
    """

    every_steps: int
    last_step: int

    def is_due(self, first_step: int, last_step: int) -> bool:
        """Check whether it is due at the report of these steps, both 0-based and both done."""
        passes_multiple = (last_step + 1) // self.every_steps > first_step // self.every_steps
        return last_step == self.last_step or passes_multiple


@contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards each submodule returns to its previous mode.

    Compiled submodules run uncompiled, since the shapes differ from those of training.
    """
    was_training = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        with torch.no_grad(), as_in_evaluation(module):
            yield
    finally:
        for part, mode in was_training:
            part.training = mode
