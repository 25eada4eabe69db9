"""Losses, compared with plain formulas and PyTorch."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from kinemae.finetune.losses import (
    binary_losses,
    class_weights,
    focal_cross_entropy,
    mean_of_known,
    smoothed_targets,
)

COUNTS = st.lists(st.integers(0, 500), min_size=2, max_size=8).filter(lambda counts: sum(counts) > 0)


@given(COUNTS, st.sampled_from(["none", "balanced", "effective"]))
def test_class_weights_average_to_1_and_prefer_rare_classes(counts, scheme):
    count_Y = torch.tensor(counts)
    weight_Y = class_weights(count_Y, scheme)

    assert (weight_Y * count_Y).sum() / count_Y.sum() == pytest.approx(1.0)
    present = sorted(
        (count, weight) for count, weight in zip(counts, weight_Y.tolist(), strict=True) if count
    )
    assert [weight for _, weight in present] == sorted((w for _, w in present), reverse=True)


def test_balanced_and_effective_weights_follow_their_formulas():
    count_Y = torch.tensor([10, 90])

    balanced_Y = class_weights(count_Y, "balanced")
    effective_Y = class_weights(count_Y, "effective", beta=0.9)

    assert balanced_Y.tolist() == pytest.approx([100 / 20, 100 / 180])
    assert (effective_Y[0] / effective_Y[1]).item() == pytest.approx((1 - 0.9**90) / (1 - 0.9**10))


def test_focal_loss_is_the_cross_entropy_times_the_factor():
    output_BY, label_B = torch.randn(6, 4), torch.arange(6) % 4
    target_BY = smoothed_targets(label_B, 4, 0.0)
    plain_B = functional.cross_entropy(output_BY, label_B, reduction="none")

    assert torch.allclose(focal_cross_entropy(output_BY, target_BY, gamma=0.0), plain_B, atol=1e-6)
    expected_B = (1 - (-plain_B).exp()) ** 2 * plain_B
    assert torch.allclose(focal_cross_entropy(output_BY, target_BY, gamma=2.0), expected_B, atol=1e-6)


def test_smoothed_targets_give_the_smoothed_cross_entropy():
    output_BY, label_B = torch.randn(6, 4), torch.arange(6) % 4
    expected_B = functional.cross_entropy(output_BY, label_B, reduction="none", label_smoothing=0.2)

    loss_B = focal_cross_entropy(output_BY, smoothed_targets(label_B, 4, 0.2), gamma=0.0)

    assert torch.allclose(loss_B, expected_B, atol=1e-6)


def test_binary_losses_are_cross_entropy_focal_or_asymmetric():
    output, target = torch.randn(50, dtype=torch.float64), (torch.arange(50) % 2).double()
    p = torch.sigmoid(output)
    plain = functional.binary_cross_entropy_with_logits(output, target, reduction="none")
    own = torch.where(target == 1, p, 1 - p)
    shifted = (p - 0.1).clamp(min=0)
    asymmetric = torch.where(target == 1, -p.log(), -(shifted**3) * (1 - shifted).log())

    assert torch.allclose(binary_losses(output, target), plain)
    focal = binary_losses(output, target, gamma_positive=2.0, gamma_negative=2.0)
    assert torch.allclose(focal, (1 - own) ** 2 * plain)
    assert torch.allclose(binary_losses(output, target, gamma_negative=3.0, margin=0.1), asymmetric)


@pytest.mark.parametrize("logit", [-200.0, 0.0, 200.0])
@pytest.mark.parametrize("settings", [{}, {"gamma_positive": 2.0, "gamma_negative": 4.0, "margin": 0.05}])
def test_binary_losses_have_a_finite_gradient(logit, settings):
    output = torch.full((2,), logit, requires_grad=True)

    binary_losses(output, torch.tensor([0.0, 1.0]), **settings).sum().backward()

    assert torch.isfinite(output.grad).all()


def test_the_mean_of_known_values_ignores_the_others():
    value_BX = torch.tensor([[1.0, float("nan")], [2.0, 4.0], [5.0, 5.0]])
    is_known_BX = torch.tensor([[True, False], [True, True], [False, False]])

    assert mean_of_known(value_BX, is_known_BX).tolist() == [1.0, 3.0, 0.0]
