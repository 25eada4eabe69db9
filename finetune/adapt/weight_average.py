"""Exponential moving average (EMA) of the trained weights (arXiv 1803.05407 compares such averages)."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kinemae.data_tools.config import require


@dataclass(frozen=True, kw_only=True)
class EmaConfig:
    """The moving average of the weights.

    Attributes:
        decay: weight of the old average at each update; 0 for no average.
    """

    decay: float = 0.0

    def __post_init__(self) -> None:
        require(0 <= self.decay < 1, "ema.decay", "lie in [0, 1), 0 is off", self.decay)


class WeightAverage(nn.Module):
    """A model with a moving average of its trained weights, which the engine updates after each step.

    The decay rises from 2/11 at the first update as (1 + n) / (10 + n), with the number n of updates, up to
    `decay`, as in TensorFlow's ExponentialMovingAverage: initial weights are replaced soon. It depends
    on the step only. Frozen weights and buffers have no average.

    Args:
        decay: the largest decay.
        steps: updates of the whole run.
    """

    def __init__(self, model: nn.Module, *, decay: float, steps: int):
        super().__init__()
        self.model = model
        self.decay = decay
        self.steps = steps
        self.averages = nn.ParameterList(
            nn.Parameter(weight.detach().clone(), requires_grad=False) for weight in self._trained()
        )

    def forward(self, *inputs: Any) -> dict[str, Tensor]:
        """Call the model with the trained weights."""
        return self.model(*inputs)

    def after_update(self, progress: float) -> None:
        """See `runtime.engine.PostStepHook`."""
        with torch.no_grad():
            averages: list[Tensor] = [*self.averages]
            torch._foreach_lerp_(averages, [*self._trained()], 1 - self.decay_at(progress))

    def decay_at(self, progress: float) -> float:
        """Return the decay at a progress of the run, above 0 and at most 1."""
        updates = round(progress * self.steps)
        return min(self.decay, (1 + updates) / (10 + updates))

    @contextmanager
    def applied(self) -> Iterator[None]:
        """While entered, the model has the averaged weights; it must not be trained."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for average, weight in zip(self.averages, self._trained(), strict=True):
            average.data, weight.data = weight.data, average.data

    def _trained(self) -> list[nn.Parameter]:
        return [weight for weight in self.model.parameters() if weight.requires_grad]
