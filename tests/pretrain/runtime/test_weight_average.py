"""The moving average of the trained weights."""

import pytest
import torch
from torch import nn

from kinemae.pretrain.runtime.settings import EmaConfig
from kinemae.pretrain.runtime.weight_average import WeightAverage


def model():
    layers = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    layers[0].requires_grad_(False)
    return layers


def test_the_average_follows_the_formula_and_covers_trained_weights_only():
    average = WeightAverage(model(), decay=0.5, steps=20)
    expected = [weight.detach().clone() for weight in average.model[1].parameters()]

    for update in range(1, 21):
        for weight in average.model[1].parameters():
            nn.init.normal_(weight)
        average.after_update(update / 20)
        decay = min(0.5, (1 + update) / (10 + update))
        trained = list(average.model[1].parameters())
        expected = [decay * old + (1 - decay) * new for old, new in zip(expected, trained, strict=True)]

    assert len(average.averages) == 2
    for own, value in zip(average.averages, expected, strict=True):
        torch.testing.assert_close(own.detach(), value)
        assert not own.requires_grad


def test_the_averaged_weights_are_used_for_a_while_and_the_trained_ones_are_unchanged():
    average = WeightAverage(model(), decay=0.9, steps=10)
    averages = [own.detach().clone() for own in average.averages]
    for weight in average.model[1].parameters():
        nn.init.normal_(weight)
    trained = [weight.detach().clone() for weight in average.model[1].parameters()]

    with average.applied():
        assert all(map(torch.equal, average.model[1].parameters(), averages))

    assert all(map(torch.equal, average.model[1].parameters(), trained))
    assert all(map(torch.equal, average.averages, averages))


def test_a_wrong_decay_is_refused():
    with pytest.raises(ValueError, match=r"ema.decay must lie in \[0, 1\), 0 is off, got 1.0"):
        EmaConfig(decay=1.0)
