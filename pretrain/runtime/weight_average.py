"""Exponential moving average (EMA) of the trained weights (arXiv 1803.05407 compares such averages)."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from kinemae.pretrain.runtime.engine import PostStepHook
from kinemae.pretrain.runtime.settings import EmaConfig


class WeightAverage(nn.Module):
    """A model with a moving average of its trained weights, which the engine updates after each step.

    The decay rises from 2/11 at the first update as (1 + n) / (10 + n), with the number n of updates, up to
    `decay`, as in TensorFlow's ExponentialMovingAverage, so initial weights soon have little influence. It
    depends on the step only. Frozen weights and buffers have no average.

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
        """See `PostStepHook`; the model's own hook runs too."""
        if isinstance(self.model, PostStepHook):
            self.model.after_update(progress)
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

    def stored_names(self) -> dict[str, str]:
        """Map each parameter of the model to the name of its averaged values in a checkpoint."""
        named = self.model.named_parameters()
        numbers = iter(range(len(self.averages)))
        return {
            name: f"averages.{next(numbers)}" if weight.requires_grad else f"model.{name}"
            for name, weight in named
        }

    def _swap(self) -> None:
        for average, weight in zip(self.averages, self._trained(), strict=True):
            average.data, weight.data = weight.data, average.data

    def _trained(self) -> list[nn.Parameter]:
        return [weight for weight in self.model.parameters() if weight.requires_grad]


def with_average(model: nn.Module, ema: EmaConfig, *, steps: int) -> nn.Module:
    """The module to train: the model, with a moving average if the config has one."""
    return WeightAverage(model, decay=ema.decay, steps=steps) if ema.decay else model


@contextmanager
def evaluation_weights(module: nn.Module) -> Iterator[None]:
    """While entered, the module of `with_average` has the weights to evaluate: the averages if it has any."""
    if isinstance(module, WeightAverage):
        with module.applied():
            yield
    else:
        yield
