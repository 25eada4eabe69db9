"""The counter of waits sees each kind of wait, and nothing else."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.pretrain.runtime.device_waits import DeviceWaits


@pytest.mark.parametrize(
    "operation",
    [
        lambda x: x.sum().item(),
        lambda x: bool(x[0, 0] > 0),
        lambda x: float(x[0, 0]),
        lambda x: x.tolist(),
        lambda x: x.numpy(),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: x.masked_select(x > 0),
        lambda x: x.unique(),
        lambda x: x.flatten().repeat_interleave(x.flatten().long()),
        lambda x: torch.equal(x, x),
    ],
)
def test_an_operation_that_reads_values_is_a_wait(operation: Callable[[Tensor], object]) -> None:
    with DeviceWaits() as counted:
        operation(torch.ones(2, 3))
    assert len(counted.waits) >= 1
    with DeviceWaits("cuda") as counted:  # the tensor is not there
        operation(torch.ones(2, 3))
    assert counted.waits == []


def test_training_without_reads_has_no_waits_and_a_read_in_the_backward_pass_is_one() -> None:
    class Reading(torch.autograd.Function):
        @staticmethod
        def forward(context: object, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(context: object, gradient: Tensor) -> Tensor:
            return gradient * gradient.sum().item()

    layer = nn.Linear(3, 3)
    optimizer = torch.optim.AdamW(layer.parameters(), fused=True)
    index = torch.tensor([1, 0])
    with DeviceWaits() as counted:
        layer(torch.ones(2, 3))[index].square().sum().backward()
        optimizer.step()
    assert counted.waits == []
    with DeviceWaits() as counted:
        Reading.apply(layer(torch.ones(2, 3))).sum().backward()
    assert counted.waits == ["aten._local_scalar_dense.default"]


def test_only_a_copy_to_a_device_that_is_not_asynchronous_is_a_wait() -> None:
    with FakeTensorMode(), DeviceWaits("cuda") as counted:
        x = torch.ones(3).to("cuda", non_blocking=True)
        assert (counted.waits, counted.copies) == ([], 1)
        x + torch.tensor([1.0, 2.0, 3.0], device="cuda")
        assert counted.waits == ["aten._to_copy.default from cpu to cuda"]
        x.cpu()
    assert len(counted.waits) == 2
    assert counted.copies == 1
