"""Optimizer: AdamW or Muon, its parameter groups, and the schedules of learning rate and weight decay."""

import math
from collections import defaultdict
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn

from kinemae.data_tools.config import require
from kinemae.pretrain.runtime.muon import MuonAdamW, stacked_matrices
from kinemae.pretrain.runtime.settings import OptimConfig


class Rates(NamedTuple):
    """Hyperparameters of one update.

    Attributes:
        lr: learning rate of groups with the scale 1.
        weight_decay: weight decay of the groups that decay; None: constant.
        progress: fraction of the run before the update. Groups with a later "starts_at" are not trained yet.
    """

    lr: float
    weight_decay: float | None = None
    progress: float = 1.0


def parameter_groups(
    module: nn.Module,
    weight_decay: float,
    layer_scale: Callable[[str], float] = lambda name: 1.0,
    starts_at: Callable[[str], float] = lambda name: 0.0,
    *,
    muon_scale: float | None = None,
) -> list[dict[str, Any]]:
    """Group the trainable parameters by weight decay and learning-rate scale.

    Weight decay applies to the weights of layers only: not to norms, biases, tokens and tables (registers,
    positions), whose names do not end in "weight".

    Args:
        layer_scale: factor on the learning rate by parameter name, for layer-wise decay.
        starts_at: fraction of the run by parameter name before which the learning rate is 0.
        muon_scale: factor on the learning rate of the hidden matrices, which Muon updates; None for AdamW.

    Returns:
        Groups with "lr_scale", "decays", "starts_at" and "muon" (see `MuonAdamW`), in an order that depends
        only on the module.
    """
    grouped: dict[tuple[float, float, float, int], list[nn.Parameter]] = defaultdict(list)
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            is_matrix = sum(size > 1 for size in parameter.shape) > 1
            decay = weight_decay if is_matrix and name.endswith("weight") else 0.0
            matrices = stacked_matrices(name, parameter) if muon_scale else 0
            scale = layer_scale(name) * (muon_scale if muon_scale and matrices else 1)
            grouped[decay, scale, starts_at(name), matrices].append(parameter)
    return [
        {
            "params": parameters,
            "weight_decay": decay,
            "lr_scale": scale,
            "decays": decay > 0,
            "starts_at": start,
            "muon": matrices,
        }
        for (decay, scale, start, matrices), parameters in grouped.items()
    ]


def build_optimizer(groups: list[dict[str, Any]], optim: OptimConfig) -> torch.optim.AdamW:
    """PyTorch's fused AdamW, with Muon if a group has it. DeepSpeed's own AdamW compiles for minutes."""
    betas = (optim.betas[0], optim.betas[1])
    kind = MuonAdamW if any(group["muon"] for group in groups) else torch.optim.AdamW
    return kind(groups, lr=optim.lr, betas=betas, eps=1e-8, fused=True)


def learning_rate(step: int, steps: int, optim: OptimConfig) -> float:
    """The learning rate schedule: a linear warm-up from 0 to `lr`, and a decay to `final_lr`.

    With `schedule` "cosine" the decay is half a cosine right after the warm-up. With "constant" it is a
    cool-down at the end of the run by 1 - sqrt(progress), which beat a linear one in arXiv 2405.18392.

    Args:
        step: 0-based, before the update.
    """
    warmup = warmup_steps(steps, optim)
    if step < warmup:
        return optim.lr * (step + 1) / warmup
    start = decay_start(steps, optim)
    progress = max(0, step - start) / max(1, steps - start)
    rest = (
        1 - math.sqrt(progress) if optim.schedule == "constant" else 0.5 * (1 + math.cos(math.pi * progress))
    )
    return optim.final_lr + (optim.lr - optim.final_lr) * rest


def warmup_steps(steps: int, optim: OptimConfig) -> int:
    """Number of steps of the warm-up."""
    return round(optim.warmup_fraction * steps) if optim.warmup_steps is None else optim.warmup_steps


def decay_start(steps: int, optim: OptimConfig) -> int:
    """The first step of the decay of the learning rate."""
    warmup = warmup_steps(steps, optim)
    if optim.schedule == "cosine":
        return warmup
    return max(warmup, steps - round(optim.cooldown_fraction * steps))


def check_schedule(steps: int, optim: OptimConfig) -> None:
    """Check that the warm-up ends within the run.

    Raises:
        ValueError: it does not.
    """
    is_within = optim.warmup_steps is None or optim.warmup_steps < steps
    require(is_within, "optim.warmup_steps", f"be less than the run's {steps} steps", optim.warmup_steps)


def weight_decay_at(step: int, steps: int, optim: OptimConfig) -> float | None:
    """The weight decay of a step: half a cosine from `weight_decay` to `final_weight_decay`.

    DINO (arXiv 2104.14294, appendix A) and V-JEPA use this schedule.

    Returns:
        None for a constant decay.
    """
    if optim.final_weight_decay is None:
        return None
    rest = 0.5 * (1 + math.cos(math.pi * step / max(1, steps - 1)))
    return optim.final_weight_decay + (optim.weight_decay - optim.final_weight_decay) * rest


def rates_at(step: int, steps: int, optim: OptimConfig) -> Rates:
    """The hyperparameters of a step, 0-based, before the update."""
    return Rates(
        learning_rate(step, steps, optim), weight_decay_at(step, steps, optim), progress=step / steps
    )


def set_rates(optimizer: torch.optim.Optimizer, rates: Rates) -> None:
    """Set the hyperparameters of the next update.

    AdamW with a learning rate of 0 leaves weights bitwise unchanged; its moments follow the gradients.
    """
    for group in optimizer.param_groups:
        is_trained = rates.progress >= group["starts_at"]
        group["lr"] = rates.lr * group["lr_scale"] if is_trained else 0.0
        if rates.weight_decay is not None and group["decays"]:
            group["weight_decay"] = rates.weight_decay
