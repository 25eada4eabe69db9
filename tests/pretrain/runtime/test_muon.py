"""Muon equals a plain implementation on hidden matrices, and AdamW on the other weights."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kinemae.pretrain.config import PretrainConfig
from kinemae.pretrain.runtime.muon import MuonAdamW, orthogonalize
from kinemae.pretrain.runtime.optimizer import build_optimizer, parameter_groups, rates_at, set_rates
from kinemae.pretrain.runtime.settings import OptimConfig
from kinemae.pretrain.training import make_plan

OPTIM = OptimConfig(lr=0.01, warmup_fraction=0.0, weight_decay=0.1)
SCALE, STEPS = 3.0, 4


class Model(nn.Module):
    """A block with two matrices upon each other, a tall one, and weights that are no hidden matrices."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList([nn.ModuleDict({"kv": nn.Linear(6, 16), "fc1": nn.Linear(16, 9)})])
        self.head = nn.Linear(9, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks[0]["fc1"](self.blocks[0]["kv"](x).relu()).relu())


def plain_update(weight: Tensor, gradient: Tensor, momentum: Tensor, lr: float) -> None:
    """A step on one matrix, in float64, as in the two sources."""
    momentum.mul_(0.95).add_(gradient, alpha=0.05)
    update = 0.05 * gradient + 0.95 * momentum
    is_tall = update.shape[0] > update.shape[1]
    x = (update.T if is_tall else update) / update.norm()
    for _ in range(5):
        x = 3.4445 * x - 4.7750 * (x @ x.T) @ x + 2.0315 * (x @ x.T) @ (x @ x.T) @ x
    weight.mul_(1 - lr * 0.1)
    weight.sub_(lr * 0.2 * max(weight.shape) ** 0.5 * (x.T if is_tall else x))


def train(model: Model, optimizer: torch.optim.Optimizer, after: Callable[[], Any] = lambda: None) -> None:
    for step in range(STEPS):
        optimizer.zero_grad()
        model(torch.randn(8, 6, generator=torch.Generator().manual_seed(step))).square().mean().backward()
        set_rates(optimizer, rates_at(step, STEPS, OPTIM))
        after()
        optimizer.step()


def test_hidden_matrices_follow_the_plain_update_and_other_weights_adamw() -> None:
    model, momenta = Model(), {}
    optimizer = build_optimizer(parameter_groups(model, 0.1, muon_scale=SCALE), OPTIM)
    assert isinstance(optimizer, MuonAdamW)
    others = [model.head.weight, model.head.bias, model.blocks[0]["kv"].bias, model.blocks[0]["fc1"].bias]
    copies = [nn.Parameter(other.detach().clone()) for other in others]
    adamw = torch.optim.AdamW(
        [{"params": copies[:1], "weight_decay": 0.1}, {"params": copies[1:], "weight_decay": 0.0}],
        betas=(0.9, 0.95),
        fused=True,
    )
    plain = {
        name: model.blocks[0][name].weight.detach().double().chunk(parts)
        for name, parts in (("kv", 2), ("fc1", 1))
    }

    def update_plainly() -> None:
        lr = next(group["lr"] for group in optimizer.param_groups if not group["muon"])
        for group in adamw.param_groups:
            group["lr"] = lr
        for copied, other in zip(copies, others, strict=True):
            copied.grad = other.grad.clone()
        adamw.step()
        for name, matrices in plain.items():
            gradients = model.blocks[0][name].weight.grad.double().chunk(len(matrices))
            for number, (matrix, gradient) in enumerate(zip(matrices, gradients, strict=True)):
                momentum = momenta.setdefault((name, number), torch.zeros_like(matrix))
                plain_update(matrix, gradient, momentum, SCALE * lr)

    train(model, optimizer, update_plainly)

    for name, matrices in plain.items():
        torch.testing.assert_close(
            model.blocks[0][name].weight.double(), torch.cat(matrices), atol=1e-5, rtol=1e-4
        )
    assert all(map(torch.equal, others, copies))


def test_the_update_has_singular_values_near_one() -> None:
    matrix_XAB = torch.randn(3, 20, 8, generator=torch.Generator().manual_seed(1))
    singular = torch.linalg.svdvals(orthogonalize(matrix_XAB))
    assert singular.min() > 0.6 and singular.max() < 1.3


def test_a_gradient_that_is_not_finite_changes_nothing() -> None:
    model = Model()
    optimizer = build_optimizer(parameter_groups(model, 0.1, muon_scale=SCALE), OPTIM)
    train(model, optimizer)
    before = [tensor.clone() for state in optimizer.state.values() for tensor in state.values()]
    weights = [weight.detach().clone() for weight in model.parameters()]

    optimizer.found_inf = torch.ones(())
    for weight in model.parameters():
        weight.grad = torch.full_like(weight, float("nan"))
    optimizer.step()

    after = [tensor for state in optimizer.state.values() for tensor in state.values()]
    assert all(map(torch.equal, before, after)) and all(map(torch.equal, weights, model.parameters()))


def test_the_matrices_of_encoder_and_decoder_blocks_belong_to_muon(
    small_config: Callable[..., PretrainConfig],
) -> None:
    model = make_plan(small_config("optim.optimizer=muon", "target.name=features")).model
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    matrices = {
        names[id(parameter)]: group["muon"]
        for group in parameter_groups(model, 0.1, muon_scale=SCALE)
        for parameter in group["params"]
        if group["muon"]
    }
    parts = {"attn.qkv": 3, "attn.proj": 1, "mlp.fc1": 1, "mlp.fc2": 1}
    cross = {"cross_attn.q": 1, "cross_attn.kv": 2, "cross_attn.proj": 1, "mlp.fc1": 1, "mlp.fc2": 1}
    assert matrices == {
        **{f"encoder.blocks.{i}.{name}.weight": count for i in range(2) for name, count in parts.items()},
        **{f"decoder.blocks.0.{name}.weight": count for name, count in cross.items()},
    }


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("engine.zero_stage=1", r"engine\.zero_stage must be 0 with optim\.optimizer=muon, which .*, got 1"),
        ("optim.muon_lr_scale=0", r"optim\.muon_lr_scale must be above 0, got 0\.0"),
    ],
)
def test_wrong_settings_are_refused_by_key(
    small_config: Callable[..., PretrainConfig], wrong: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        small_config("optim.optimizer=muon", wrong)
