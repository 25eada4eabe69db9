import pytest
import torch

from kinemae.data_tools.randomness import generator
from kinemae.pretrain.masking.frame import FrameMasking
from kinemae.pretrain.model.tokens import TokenGrid

GRID = TokenGrid(8, 2, 3)


def slices_of(order, sample=0, ratio=0.7):
    chance = generator(0, purpose="masking", sample=sample)
    visible_K, hidden_M = FrameMasking(ratio=ratio, order=order).split(GRID, chance)
    visible_ts, hidden_ts = (index.sort().values.view(-1, GRID.per_slice) for index in (visible_K, hidden_M))
    for whole in (visible_ts, hidden_ts):  # every position of each slice
        assert torch.equal(whole - whole[:, :1], torch.arange(6).expand(len(whole), -1))
    return [(whole[:, 0] // GRID.per_slice).tolist() for whole in (visible_ts, hidden_ts)]


def test_causal_shows_the_first_slices_and_hides_the_later_ones():
    assert slices_of("causal") == [[0, 1, 2], [3, 4, 5, 6, 7]]
    assert slices_of("causal", sample=3) == [[0, 1, 2], [3, 4, 5, 6, 7]]


def test_random_hides_any_slices():
    hidden = torch.tensor([slices_of("random", sample)[1] for sample in range(400)])
    often = hidden.flatten().bincount(minlength=8) / 400
    assert ((often - 5 / 8).abs() < 0.1).all()


def test_a_clip_of_one_slice_is_refused():
    with pytest.raises(ValueError, match=r"leaves 6 tokens visible and 0 hidden on a grid of 1x2x3"):
        FrameMasking().counts(TokenGrid(1, 2, 3))


def test_an_unknown_order_is_refused():
    with pytest.raises(ValueError, match=r"masking.args.order must be one of causal, random, got 'first'"):
        FrameMasking(order="first")
