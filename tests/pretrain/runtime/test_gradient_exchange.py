"""The exchange of gradients at ZeRO 0: averages in buckets, with zeros for missing gradients."""

import json

import pytest
import torch
from torch import nn

from kinemae.pretrain.runtime.gradient_exchange import GradientExchange
from kinemae.pretrain.runtime.processes import Processes
from tests.pretrain.runtime.exchange_job import CASES, STEPS
from tests.ranks import start_ranks


@pytest.mark.processes
def test_gradients_are_the_averages_over_processes() -> None:
    job = start_ranks(2, "-m", "tests.pretrain.runtime.exchange_job")
    outputs = [process.communicate(timeout=240) for process in job]
    assert all(process.returncode == 0 for process in job), outputs
    found = json.loads(outputs[0][0].splitlines()[-1])
    assert found.keys() == CASES.keys()
    for name, errors in found.items():
        assert len(errors) == STEPS
        assert max(errors) < 1e-6 if name != "bf16" else 1e-5 < max(errors) < 1e-1, found


def test_a_single_process_sends_nothing_and_a_missing_gradient_is_zero() -> None:
    processes = Processes(rank=0, world=1, device=torch.device("cpu"))
    net = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)])
    exchange = GradientExchange(list(net.parameters()), processes, bucket_values=100, dtype=torch.bfloat16)
    loss = net[0](torch.ones(1, 3)).sum() / 3
    expected = torch.autograd.grad(loss, net[0].weight, retain_graph=True)[0]
    exchange.before_backward(is_last=True)
    loss.backward()
    exchange.finish()
    assert torch.equal(net[0].weight.grad, expected)  # not rounded
    assert net[1].weight.grad is not None and not net[1].weight.grad.any()
