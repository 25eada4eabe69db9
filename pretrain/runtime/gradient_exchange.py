"""The gradients at ZeRO 0 and 1: averaged over all processes in buckets, during the backward pass."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from kinemae.pretrain.runtime.processes import Processes


class GradientExchange:
    """Averages gradients over processes, as the reducer of DDP does (arXiv 2006.15704, section 3.2).

    The backward pass computes the last parameters' gradients first. So buckets hold parameters in reverse
    order, and a bucket is sent when its gradients and those of the buckets before it are complete. All
    processes send buckets in one order. Gradients are views of their bucket: nothing is copied.

    A parameter without a gradient has a gradient of zero, since other processes may have one.

    Args:
        parameters: those with gradients, in the order of the forward pass, of one dtype and device.
        bucket_values: most values in a bucket, unless one parameter has more.
        dtype: of the exchanged values.
        overlaps: whether buckets are sent during the backward pass, or after it.
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        processes: Processes,
        *,
        bucket_values: int,
        dtype: torch.dtype,
        overlaps: bool = True,
    ):
        self._processes = processes
        self._dtype = dtype
        self._buckets = [_Bucket(part) for part in _cut(parameters, bucket_values)]
        self._is_last = False
        self._sent = 0
        if processes.world > 1 and overlaps:
            for bucket in self._buckets:
                for parameter in bucket.parameters:
                    parameter.register_post_accumulate_grad_hook(partial(self._on_gradient, bucket))

    def before_backward(self, *, is_last: bool) -> None:
        """Prepare the gradients of a micro-batch.

        Args:
            is_last: whether an update follows it.
        """
        self._is_last, self._sent = is_last, 0
        for bucket in self._buckets:
            bucket.attach()

    def finish(self) -> None:
        """Collective, after the last micro-batch of a step. The gradients are then the averages."""
        if self._processes.world == 1:
            return
        while self._sent < len(self._buckets):
            self._send_next()
        for bucket in self._buckets:
            bucket.receive(self._processes.world)
        self._is_last = False

    def _on_gradient(self, bucket: "_Bucket", _: Tensor) -> None:
        bucket.missing -= 1
        while self._is_last and self._sent < len(self._buckets) and not self._buckets[self._sent].missing:
            self._send_next()

    def _send_next(self) -> None:
        self._buckets[self._sent].send(self._dtype, self._processes)
        self._sent += 1


class _Bucket:
    """Gradients that are exchanged in one message.

    Attributes:
        parameters: their parameters.
        missing: number of gradients that this backward pass has not computed.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]):
        self.parameters = parameters
        self._values_V = torch.zeros(0)
        self._sent_V = self._values_V
        self._wait: Callable[[], object] | None = None
        self.missing = 0

    def attach(self) -> None:
        """Set the gradients that the last update has removed to zero."""
        self.missing = len(self.parameters)
        if all(parameter.grad is not None for parameter in self.parameters):
            return
        size = sum(parameter.numel() for parameter in self.parameters)
        self._values_V = self.parameters[0].new_zeros(size)
        parts = self._values_V.split([parameter.numel() for parameter in self.parameters])
        for parameter, part_V in zip(self.parameters, parts, strict=True):
            parameter.grad = part_V.view_as(parameter)

    def send(self, dtype: torch.dtype, processes: Processes) -> None:
        """Begin the exchange."""
        self._sent_V = self._values_V.to(dtype)
        self._wait = processes.begin_sum(self._sent_V)

    def receive(self, world: int) -> None:
        """Wait for the exchange."""
        assert self._wait is not None
        self._wait()
        self._wait = None
        if self._sent_V is not self._values_V:
            self._values_V.copy_(self._sent_V)
        self._values_V.mul_(1 / world)
        self._sent_V = self._values_V


def _cut(parameters: Sequence[nn.Parameter], most: int) -> list[list[nn.Parameter]]:
    """Cut the reversed parameters into parts of at most `most` values, or of one parameter."""
    parts: list[list[nn.Parameter]] = []
    size = most
    for parameter in reversed(parameters):
        size += parameter.numel()
        if not parts or size > most:
            parts.append([])
            size = parameter.numel()
        parts[-1].append(parameter)
    return parts
