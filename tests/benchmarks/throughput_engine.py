"""Section `engine` of `throughput.py`: whole steps in a plain loop of PyTorch, and in our engine."""

from collections.abc import Callable

import torch

from kinemae.data_tools.randomness import ClipRandom
from kinemae.data_tools.stream.batch import ClipBatch
from kinemae.data_tools.stream.order import plan_batch
from kinemae.pretrain.model.autoencoder import MaskedAutoencoder
from kinemae.pretrain.model.sizes import ModelConfig
from kinemae.pretrain.runtime.engine import Engine
from kinemae.pretrain.runtime.optimizer import Rates, build_optimizer, parameter_groups
from kinemae.pretrain.runtime.processes import find_processes
from kinemae.pretrain.runtime.settings import EngineConfig, OptimConfig
from tests.benchmarks.step import our_model

STAGES = (0, 1, 2, 3)
_OPTIM = OptimConfig()


def loops(size: str, clip_BCTHW: torch.Tensor) -> dict[str, Callable[[], None]]:
    """A step of each kind, by name; each has its own model."""
    made = {"plain loop": plain_loop(*our_model(ModelConfig(size=size), clip_BCTHW))}
    for stage in STAGES:
        model, batch = our_model(ModelConfig(size=size), clip_BCTHW)
        made[f"engine, ZeRO {stage}"] = engine_loop(model, batch, stage=stage)
    return made


def plain_loop(model: MaskedAutoencoder, batch: ClipBatch) -> Callable[[], None]:
    """A step with clipping and fused AdamW, without an engine."""
    optimizer = build_optimizer(parameter_groups(model, _OPTIM.weight_decay), _OPTIM)
    device, draws = batch.weight_B.device.type, ClipRandom(0, batch.clip_index_B)

    def run() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            loss = model(batch, draws)["loss"].mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), _OPTIM.clip_norm, foreach=True)
        optimizer.step()

    return run


def engine_loop(model: MaskedAutoencoder, batch: ClipBatch, *, stage: int) -> Callable[[], None]:
    """The same step by our engine, in one process."""
    device, draws, clips = batch.weight_B.device.type, ClipRandom(0, batch.clip_index_B), len(batch.weight_B)
    engine = Engine(
        model,
        parameter_groups(model, _OPTIM.weight_decay),
        optim=_OPTIM,
        engine=EngineConfig(device=device, zero_stage=stage),
        plan=plan_batch(clips, clips, world=1, views=1),
        processes=find_processes(device),
    )

    def run() -> None:
        engine.backward(engine(batch, draws)["loss"].mean())
        engine.step(Rates(_OPTIM.lr))

    return run
