"""Learning rate by step, and parameter groups with weight decay."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from kinemae.pretrain.runtime.optimizer import (
    Rates,
    build_optimizer,
    learning_rate,
    parameter_groups,
    set_rates,
)
from kinemae.pretrain.runtime.settings import OptimConfig

OPTIM = OptimConfig(lr=1.0, final_lr=0.1, warmup_fraction=0.1)


def model() -> nn.Module:
    block = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    block.register_parameter("token", nn.Parameter(torch.zeros(1, 1, 4)))
    block.register_parameter("table_ND", nn.Parameter(torch.zeros(3, 4)))
    return block


def test_warm_up_rises_to_the_peak_and_the_cosine_falls_to_the_end() -> None:
    rates = [learning_rate(step, 100, OPTIM) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[10] == 1.0
    assert rates[55] == pytest.approx((1.0 + 0.1) / 2)
    assert rates[99] == pytest.approx(0.1, abs=1e-3)


def test_the_constant_schedule_cools_down_by_one_minus_a_square_root() -> None:
    optim = OptimConfig(
        lr=1.0, final_lr=0.1, schedule="constant", cooldown_fraction=0.16, warmup_fraction=0.5, warmup_steps=4
    )
    rates = [learning_rate(step, 100, optim) for step in range(100)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4:85] == [1.0] * 81
    assert rates[88] == pytest.approx(0.1 + 0.9 * (1 - (4 / 16) ** 0.5))
    assert rates[99] == pytest.approx(0.1 + 0.9 * (1 - (15 / 16) ** 0.5))


@given(
    steps=st.integers(1, 5000),
    share=st.floats(0, 0.9),
    cooldown=st.floats(0, 1),
)
def test_the_learning_rate_stays_in_its_bounds(steps: int, share: float, cooldown: float) -> None:
    optim = OptimConfig(lr=1.0, final_lr=0.1, warmup_fraction=share)
    constant = replace(optim, schedule="constant", cooldown_fraction=cooldown)
    for step in {0, steps // 2, steps - 1}:
        assert 0 < learning_rate(step, steps, optim) <= 1.0
        assert 0 < learning_rate(step, steps, constant) <= 1.0


def test_norms_biases_tokens_and_tables_do_not_decay() -> None:
    module = model()
    groups = parameter_groups(module, 0.05)
    decayed = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    assert decayed == {id(module[0].weight), id(module[2].weight)}


def test_frozen_parameters_have_no_group() -> None:
    module = model()
    module[0].requires_grad_(False)
    held = {id(p) for group in parameter_groups(module, 0.05) for p in group["params"]}
    assert held == {id(p) for p in module.parameters() if p.requires_grad}


def test_layers_have_their_learning_rate_scale() -> None:
    groups = parameter_groups(model(), 0.05, lambda name: 0.5 if name.startswith("0.") else 1.0)
    optimizer = build_optimizer(groups, OPTIM)
    set_rates(optimizer, Rates(0.2))
    assert {(group["lr_scale"], group["lr"]) for group in optimizer.param_groups} == {(0.5, 0.1), (1.0, 0.2)}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"lr": 0.0}, "optim.lr must be above 0, got 0.0"),
        ({"lr": 1e-3, "final_lr": 1e-2}, "optim.final_lr must lie between 0 and optim.lr"),
        ({"warmup_fraction": 1.0}, r"optim.warmup_fraction must lie in \[0, 1\)"),
        ({"warmup_steps": -1}, "optim.warmup_steps must be null, or 0 or more, got -1"),
        (
            {"schedule": "constant", "cooldown_fraction": 1.1},
            "optim.cooldown_fraction must lie between 0 and 1",
        ),
        (
            {"cooldown_fraction": 0.1},
            "optim.cooldown_fraction must be omitted unless optim.schedule=constant",
        ),
        ({"weight_decay": -1.0}, "optim.weight_decay must be 0 or more"),
        ({"betas": [0.9]}, "optim.betas must be two numbers"),
        ({"clip_norm": -1.0}, r"optim.clip_norm must be 0 \(off\) or more"),
    ],
)
def test_wrong_settings_are_refused_by_key(wrong: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OptimConfig(**wrong)
