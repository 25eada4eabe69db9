"""Times of training steps, taken so that a busy machine disturbs all of them alike."""

import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

from torch import Tensor, nn


class Step(NamedTuple):
    """A model and the loss of one micro-batch under it."""

    model: nn.Module
    loss: Callable[[], Tensor]


def seconds(step: Step) -> float:
    """The process's own time of one forward and backward, from no gradients as an optimiser leaves them."""
    step.model.zero_grad(set_to_none=True)
    start = time.process_time()
    step.loss().backward()
    return time.process_time() - start


def least_seconds(steps: Mapping[str, Step], repeats: int) -> dict[str, float]:
    """The least time of each step, after one that allocates; the steps take turns."""
    for step in steps.values():
        seconds(step)
    rounds = [{name: seconds(step) for name, step in steps.items()} for _ in range(repeats)]
    return {name: min(times[name] for times in rounds) for name in steps}
