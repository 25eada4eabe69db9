from itertools import permutations

import pytest
import torch

from kinemae.data_tools.randomness import generator
from kinemae.pretrain.masking.motion import STILL, MotionMasking
from kinemae.pretrain.model.tokens import TokenGrid

GRID = TokenGrid(3, 4, 5)
MOTION_N = torch.rand(GRID.tokens, generator=torch.Generator().manual_seed(1)) * 50 + STILL


def split(masking, motion_N=MOTION_N, grid=GRID, sample=0):
    return masking.split(grid, generator(0, purpose="masking", sample=sample), motion_N)


def chance_of_being_drawn(odds, count):
    """Enumerate the probability of each item to be among `count` items drawn without replacement."""
    chance = [0.0] * len(odds)
    for drawn in permutations(range(len(odds)), count):
        left, likely = sum(odds), 1.0
        for item in drawn:
            likely *= odds[item] / left
            left -= odds[item]
        for item in drawn:
            chance[item] += likely
    return torch.tensor(chance)


@pytest.mark.parametrize("side", ["hidden", "visible"])
@pytest.mark.parametrize(("temperature", "power"), [(1.0, 1.0), (2.0, 0.5), (float("inf"), 0.0)])
def test_tokens_are_drawn_without_replacement_with_weights_by_their_motion(side, temperature, power):
    grid, draws = TokenGrid(1, 1, 5), 3000
    motion_N = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0])
    masking = MotionMasking(ratio=0.4, side=side, temperature=temperature, tubes=False)
    index = 1 if side == "hidden" else 0
    drawn = torch.cat([split(masking, motion_N, grid, sample)[index] for sample in range(draws)])
    expected = chance_of_being_drawn((motion_N**power).tolist(), count=2 if side == "hidden" else 3)
    assert (drawn.bincount(minlength=5) / draws - expected).abs().max() < 5 * (0.25 / draws) ** 0.5


def test_an_infinite_temperature_ignores_motion():
    masking = MotionMasking(temperature=float("inf"), tubes=False)
    moving, still = split(masking), split(masking, torch.zeros(GRID.tokens))
    assert torch.equal(torch.cat(moving), torch.cat(still))


@pytest.mark.parametrize("temperature", [1e-9, 1e-3])
def test_a_temperature_near_0_takes_the_tokens_with_most_motion(temperature):
    most_first = MOTION_N.argsort(descending=True)
    visible_K, hidden_M = split(MotionMasking(ratio=0.8, temperature=temperature, tubes=False))
    assert torch.equal(hidden_M.sort().values, most_first[:48].sort().values)
    visible_K, _ = split(MotionMasking(ratio=0.8, side="visible", temperature=temperature, tubes=False))
    assert torch.equal(visible_K, most_first[:12].sort().values)


def test_tubes_hide_the_positions_with_the_most_mean_motion_in_all_slices():
    place_S = MOTION_N.view(3, 20).sum(0).argsort(descending=True)[:10].sort().values
    _, hidden_M = split(MotionMasking(ratio=0.5, temperature=1e-9))
    assert torch.equal(hidden_M.sort().values.view(3, 10), place_S + torch.tensor([[0], [20], [40]]))


def test_scaling_motion_changes_nothing():
    masking = MotionMasking(ratio=0.5, tubes=False)
    assert torch.equal(torch.cat(split(masking)), torch.cat(split(masking, 4 * MOTION_N)))


def test_noise_below_a_grey_level_counts_as_no_motion():
    masking = MotionMasking(ratio=0.5, tubes=False)
    trembling = torch.linspace(0, STILL, GRID.tokens)
    assert torch.equal(torch.cat(split(masking, trembling)), torch.cat(split(masking, 0 * trembling)))


def visible_per_slice(masking, motion_N, grid):
    return (split(masking, motion_N, grid)[0] // grid.per_slice).bincount(minlength=grid.t).tolist()


@pytest.mark.parametrize("side", ["hidden", "visible"])
def test_by_slice_neither_whole_frame_motion_nor_a_repeated_frame_attracts_tokens(side):
    grid = TokenGrid(4, 10, 10)
    place_S = torch.linspace(5, 15, 100)
    motion_N = torch.stack([place_S, 0 * place_S, 20 * place_S, place_S]).flatten()
    clip, by_slice = (
        visible_per_slice(MotionMasking(ratio=0.8, side=side, tubes=False, by_slice=on), motion_N, grid)
        for on in (False, True)
    )
    attracted = 1 if side == "hidden" else 2
    assert clip[attracted] > 50 and max(by_slice) < 32 and min(by_slice) > 10


def test_by_slice_takes_the_same_positions_of_each_slice_at_a_low_temperature():
    motion_tS = torch.rand(3, 20, generator=torch.Generator().manual_seed(2)) + STILL
    motion_N = (motion_tS[:1] * torch.tensor([[1.0], [4.0], [20.0]])).flatten()
    masking = MotionMasking(ratio=0.5, tubes=False, by_slice=True, temperature=1e-6)
    visible_K, _ = split(masking, motion_N)
    assert (visible_K // 20).bincount().tolist() == [10, 10, 10]
    assert torch.equal(visible_K[:10], visible_K[10:20] - 20)


def test_by_slice_tubes_count_each_slice_equally():
    motion_N = torch.ones(3, 20) * torch.tensor([[2.0], [2.0], [100.0]])
    motion_N[0, :10], motion_N[1, :10], motion_N[2, 10:] = 6, 6, 120  # two slices against one with more
    masking = MotionMasking(ratio=0.5, temperature=1e-6, by_slice=True)
    assert set((split(masking, motion_N.flatten())[1] % 20).tolist()) == set(range(10))
    without = MotionMasking(ratio=0.5, temperature=1e-6)
    assert set((split(without, motion_N.flatten())[1] % 20).tolist()) == set(range(10, 20))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"side": "both"}, "masking.args.side must be one of hidden, visible, got 'both'"),
        ({"temperature": 0.0}, "masking.args.temperature must be above 0, got 0.0"),
        ({"temperature": -1.0}, "masking.args.temperature must be above 0, got -1.0"),
        ({"temperature": float("nan")}, "masking.args.temperature must be above 0, got nan"),
    ],
)
def test_a_wrong_argument_is_refused(args, message):
    with pytest.raises(ValueError, match=message):
        MotionMasking(**args)
