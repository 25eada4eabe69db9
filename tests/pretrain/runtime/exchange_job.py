"""One process of a job that compares `GradientExchange` with plain all-reduces.

    RANK=.. WORLD_SIZE=.. python -m tests.pretrain.runtime.exchange_job

Rank 0 prints a JSON: for each case the largest difference of a gradient in each step.
"""

import json
import sys

import torch
import torch.distributed as dist
from torch import Tensor, nn

from kinemae.pretrain.runtime.gradient_exchange import GradientExchange
from kinemae.pretrain.runtime.processes import (
    Processes,
    destroy_process_group,
    find_processes,
    init_process_group,
)

CASES = {"fp32": (torch.float32, True), "fp32 after": (torch.float32, False), "bf16": (torch.bfloat16, True)}
STEPS, ACCUMULATION = 3, 2


def own_gradients(net: nn.ModuleList, rank: int, seed: int) -> tuple[Tensor, list[Tensor]]:
    """A loss and its gradients; layer 1 is without a gradient on the second process, layer 2 on all."""
    torch.manual_seed(seed)
    x = torch.randn(3, 5)
    for layer in [net[0], net[1], net[3]] if rank == 0 else [net[0], net[3]]:
        x = layer(x)
    loss, weights = x.square().mean(), list(net.parameters())
    found = torch.autograd.grad(loss, weights, retain_graph=True, allow_unused=True)
    return loss, [torch.zeros_like(w) if one is None else one for w, one in zip(weights, found, strict=True)]


def errors(processes: Processes, dtype: torch.dtype, overlaps: bool) -> list[float]:
    """The largest difference to the averages of plain all-reduces, in each step."""
    torch.manual_seed(0)
    net = nn.ModuleList([nn.Linear(5, 5) for _ in range(4)])
    weights = list(net.parameters())
    exchange = GradientExchange(weights, processes, bucket_values=40, dtype=dtype, overlaps=overlaps)
    found = []
    for step in range(STEPS):
        sums = [torch.zeros_like(weight) for weight in weights]
        for micro in range(ACCUMULATION):
            seed = 100 * step + 10 * micro + processes.rank
            loss, own = own_gradients(net, processes.rank, seed)
            sums = [total + one for total, one in zip(sums, own, strict=True)]
            exchange.before_backward(is_last=micro == ACCUMULATION - 1)
            loss.backward()
        exchange.finish()
        for total in sums:
            dist.all_reduce(total)
        pairs = zip(weights, sums, strict=True)
        found.append(max(float((w.grad - total / processes.world).abs().max()) for w, total in pairs))
        with torch.no_grad():
            for weight in weights:
                weight -= 0.1 * weight.grad
        net.zero_grad(set_to_none=step == 0)  # engines do either
    return found


def main() -> None:
    """See the top of this file."""
    processes = find_processes("cpu")
    init_process_group(processes)
    found = {name: errors(processes, *case) for name, case in CASES.items()}
    if processes.is_first:
        sys.stdout.write(json.dumps(found))
    destroy_process_group()


if __name__ == "__main__":
    main()
