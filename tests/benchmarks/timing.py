"""CPU times of training steps that alternate, so that a busy machine affects all alike."""

import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

from torch import Tensor, nn


class Step(NamedTuple):
    """A model and a function that computes its loss on one micro-batch."""

    model: nn.Module
    loss: Callable[[], Tensor]


def seconds(step: Step) -> float:
    """Measure CPU seconds of one forward and backward, without gradients from before."""
    step.model.zero_grad(set_to_none=True)
    start = time.process_time()
    step.loss().backward()
    return time.process_time() - start


def min_seconds(steps: Mapping[str, Step], repeats: int) -> dict[str, float]:
    """Return the minimum time of each step after a warm-up; the steps alternate."""
    for step in steps.values():
        seconds(step)
    rounds = [{name: seconds(step) for name, step in steps.items()} for _ in range(repeats)]
    return {name: min(times[name] for times in rounds) for name in steps}
