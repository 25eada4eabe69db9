"""Schedules of the weight decay and of the start of parameter groups."""

import pytest
import torch
from torch import nn

from kinemae.pretrain.runtime.optimizer import (
    Rates,
    build_optimizer,
    parameter_groups,
    rates_at,
    set_rates,
    weight_decay_at,
)
from kinemae.pretrain.runtime.settings import OptimConfig

OPTIM = OptimConfig(lr=0.1, final_lr=0.1, warmup_fraction=0.0, weight_decay=0.1, final_weight_decay=0.5)


def test_the_weight_decay_is_half_a_cosine_from_the_first_value_to_the_last() -> None:
    decays = [weight_decay_at(step, 101, OPTIM) for step in range(101)]

    assert decays[0] == pytest.approx(0.1)
    assert decays[50] == pytest.approx(0.3)
    assert decays[100] == pytest.approx(0.5)
    assert decays == sorted(decays)


def test_only_the_groups_that_decay_follow_the_schedule() -> None:
    optimizer = build_optimizer(parameter_groups(nn.Linear(4, 4), OPTIM.weight_decay), OPTIM)

    for step in (0, 9, 0):
        set_rates(optimizer, rates_at(step, 10, OPTIM))
        expected = {0.0, weight_decay_at(step, 10, OPTIM)}
        assert {group["weight_decay"] for group in optimizer.param_groups} == expected


def test_a_constant_weight_decay_is_not_touched() -> None:
    constant = OptimConfig(weight_decay=0.1)
    optimizer = build_optimizer(parameter_groups(nn.Linear(4, 4), 0.1), constant)

    set_rates(optimizer, rates_at(5, 10, constant))

    assert rates_at(5, 10, constant).weight_decay is None
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.0, 0.1}


def test_a_group_is_bitwise_unchanged_before_its_start_and_trained_from_it_on() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    starts = parameter_groups(
        module, OPTIM.weight_decay, starts_at=lambda name: 0.5 if name[0] == "0" else 0.0
    )
    optimizer = build_optimizer(starts, OPTIM)

    for step in range(6):
        before = [parameter.detach().clone() for parameter in module.parameters()]
        module(torch.randn(8, 4)).square().mean().backward()
        set_rates(optimizer, rates_at(step, 10, OPTIM))
        optimizer.step()
        is_changed = [not torch.equal(old, new) for old, new in zip(before, module.parameters(), strict=True)]
        assert is_changed == [step >= 5, step >= 5, True, True]


def test_groups_without_a_start_are_trained_at_any_progress() -> None:
    optimizer = build_optimizer(parameter_groups(nn.Linear(2, 2), 0.1), OPTIM)

    set_rates(optimizer, Rates(0.3, progress=0.0))

    assert {group["lr"] for group in optimizer.param_groups} == {0.3}


@pytest.mark.parametrize(
    "wrong", [{"final_weight_decay": -0.1}, {"weight_decay": 0, "final_weight_decay": 0.1}]
)
def test_a_wrong_final_weight_decay_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"optim.final_weight_decay must be null, or 0 or more with"):
        OptimConfig(**wrong)
