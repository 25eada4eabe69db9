"""Loss of a pyramid head against plain implementations."""

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st

from kinemae.finetune.temporal.localization_loss import (
    assign_positions,
    distance_iou_loss,
    sigmoid_focal_loss,
)


def pyramid(slices, levels):
    """Centre and size of every position, as fractions of the clip."""
    rows = [
        ((place + 0.5) * 2**level / slices, 2**level / slices)
        for level in range(levels)
        for place in range(slices // 2**level)
    ]
    return torch.tensor(rows).T


@given(st.integers(0, 2**32 - 1), st.integers(0, 5), st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_positions_get_the_shortest_segment_that_they_may_learn(seed, count, levels):
    chance = torch.Generator().manual_seed(seed)
    centre_P, size_P = pyramid(16, levels)
    segment_E2 = torch.rand(count, 2, generator=chance).sort(dim=1).values.reshape(count, 2)
    class_E = torch.randint(-2, 3, (count,), generator=chance)
    if count == 0:  # the table of targets always has a row
        segment_E2, class_E = torch.zeros(1, 2), torch.tensor([-1])

    assigned = assign_positions(centre_P[None], size_P[None], segment_E2[None], class_E[None], radius=1.5)

    for place, (centre, size) in enumerate(zip(centre_P.tolist(), size_P.tolist(), strict=True)):
        own, is_ignored = [], False
        for (start, end), label in zip(segment_E2.tolist(), class_E.tolist(), strict=True):
            if not start < centre < end:
                continue
            is_ignored = is_ignored or label == -2
            reach = max(centre - start, end - centre) / size
            low = 0 if size == size_P.min() else 2
            high = float("inf") if size == size_P.max() else 4
            if label >= 0 and abs(centre - (start + end) / 2) <= 1.5 * size and low <= reach < high:
                own.append((end - start, label, centre - start, end - centre))
        assert assigned.is_positive_BP[0, place] == bool(own)
        assert assigned.is_counted_BP[0, place] == (bool(own) or not is_ignored)
        if own:
            _, label, *distances = min(own)
            assert assigned.class_BP[0, place] == label
            assert assigned.distance_BP2[0, place].tolist() == pytest.approx(distances, abs=1e-6)


@given(st.lists(st.floats(0.01, 5), min_size=4, max_size=4))
@settings(deadline=None)
def test_the_distance_iou_loss_equals_the_formula_of_segments(values):
    first, second = (-values[0], values[1]), (-values[2], values[3])
    intersection = min(first[1], second[1]) - max(first[0], second[0])
    iou = intersection / (sum(values) - intersection)
    enclosing = max(first[1], second[1]) - min(first[0], second[0])
    expected = 1 - iou + ((sum(first) - sum(second)) / 2 / enclosing) ** 2

    loss = distance_iou_loss(torch.tensor(values[:2]), torch.tensor(values[2:]))

    assert loss.item() == pytest.approx(expected, abs=1e-4)


def test_the_distance_iou_loss_is_zero_for_equal_segments_and_finite_for_empty_ones():
    distance_X2 = torch.tensor([[0.2, 0.3], [0.0, 0.0]], requires_grad=True)

    loss_X = distance_iou_loss(distance_X2, torch.tensor([[0.2, 0.3], [0.0, 0.0]]))
    loss_X.sum().backward()

    assert loss_X[0].item() == pytest.approx(0, abs=1e-6)
    assert torch.isfinite(loss_X).all() and torch.isfinite(distance_X2.grad).all()


def test_the_focal_loss_equals_torchvision():
    torch.manual_seed(0)
    logits, target = 4 * torch.randn(5, 7), torch.randint(0, 2, (5, 7)).float()

    expected = torchvision.ops.sigmoid_focal_loss(logits, target, alpha=0.25, gamma=2.0)

    torch.testing.assert_close(sigmoid_focal_loss(logits, target), expected)
