"""One process of a job that counts DeepSpeed's synchronizations and all-reduces in each step.

    RANK=.. WORLD_SIZE=.. python -m tests.pretrain.runtime.step_job STAGE BUCKET_MB

Rank 0 prints a JSON: for each step the device synchronizations, the sizes of the all-reduces, and how many of
them began before the last backward pass ended.
"""

import json
import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from kinemae.data_tools.stream.order import plan_batch
from kinemae.pretrain.runtime.engine import Engine
from kinemae.pretrain.runtime.optimizer import Rates, parameter_groups
from kinemae.pretrain.runtime.processes import destroy_process_group, find_processes, init_process_group
from kinemae.pretrain.runtime.settings import EngineConfig, OptimConfig

WIDTH, LAYERS, STEPS, ACCUMULATION = 300, 12, 3, 2
GRADIENTS = LAYERS * (WIDTH * WIDTH + WIDTH)


class Net(nn.Module):
    """Linear layers of 0.36 MB each."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(*[nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS)])

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"loss": self.layers(x).square().mean(1)}


def counting(function: Callable[..., Any], sizes: list[int]) -> Callable[..., Any]:
    """Wrap a function and record the size of the first tensor of each call."""

    def call(*arguments: Any, **named: Any) -> Any:
        given = next((x for x in (*arguments, *named.values()) if isinstance(x, Tensor)), torch.empty(0))
        sizes.append(given.numel())
        return function(*arguments, **named)

    return call


def main() -> None:
    """See the top of this file."""
    stage, bucket_mb = map(int, sys.argv[1:])
    processes = find_processes("cpu")
    init_process_group(processes)
    torch.manual_seed(0)
    net = Net()
    engine = Engine(
        net,
        parameter_groups(net, 0.05),
        optim=OptimConfig(),
        engine=EngineConfig(zero_stage=stage, device="cpu", bucket_mb=bucket_mb),
        plan=plan_batch(2 * processes.world * ACCUMULATION, 2, processes.world, 1),
        processes=processes,
    )
    from deepspeed.accelerator import get_accelerator

    synchronized: list[int] = []
    reduced: list[int] = []
    get_accelerator().synchronize = counting(lambda *_: None, synchronized)
    dist.all_reduce = counting(dist.all_reduce, reduced)
    steps = []
    for _ in range(STEPS):
        synchronized.clear()
        reduced.clear()
        overlapped = []
        for _ in range(ACCUMULATION):
            engine.backward(engine(torch.randn(2, WIDTH))["loss"].mean())
            overlapped.append(len(reduced))
            engine.step(Rates(1e-3))
        counts = {"synchronized": len(synchronized), "overlapped": overlapped}
        steps.append({**counts, "reduced": list(reduced)})
    if processes.is_first:
        sys.stdout.write(json.dumps(steps))
    destroy_process_group()


if __name__ == "__main__":
    main()
