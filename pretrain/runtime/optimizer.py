"""Optimizer: AdamW, its parameter groups, and the learning-rate schedule (warmup, then cosine)."""

import math
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from kinemae.pretrain.runtime.settings import OptimConfig


def parameter_groups(
    module: nn.Module, weight_decay: float, layer_scale: Callable[[str], float] = lambda name: 1.0
) -> list[dict[str, Any]]:
    """Group the trainable parameters by weight decay and learning-rate scale.

    Weight decay applies to the weights of layers only: not to norms, biases, tokens and tables (registers,
    positions), whose names do not end in "weight".

    Args:
        layer_scale: factor on the learning rate by parameter name, for layer-wise decay.

    Returns:
        AdamW groups with "lr_scale", in an order that depends only on the module.
    """
    grouped: dict[tuple[float, float], list[nn.Parameter]] = defaultdict(list)
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            is_matrix = sum(size > 1 for size in parameter.shape) > 1
            decay = weight_decay if is_matrix and name.endswith("weight") else 0.0
            grouped[decay, layer_scale(name)].append(parameter)
    return [
        {"params": parameters, "weight_decay": decay, "lr_scale": scale}
        for (decay, scale), parameters in grouped.items()
    ]


def build_optimizer(groups: list[dict[str, Any]], optim: OptimConfig) -> torch.optim.AdamW:
    """PyTorch's fused AdamW. DeepSpeed's own compiles for minutes at first use."""
    betas = (optim.betas[0], optim.betas[1])
    return torch.optim.AdamW(groups, lr=optim.lr, betas=betas, eps=1e-8, fused=True)


def learning_rate(step: int, steps: int, optim: OptimConfig) -> float:
    """The learning rate schedule: linear from 0 in the warmup, then half a cosine from `lr` to `final_lr`.

    Args:
        step: 0-based, before the update.
    """
    warmup_steps = round(optim.warmup_fraction * steps)
    if step < warmup_steps:
        return optim.lr * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, steps - warmup_steps)
    return optim.final_lr + (optim.lr - optim.final_lr) * 0.5 * (1 + math.cos(math.pi * progress))


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]
