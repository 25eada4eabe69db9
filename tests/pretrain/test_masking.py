import pytest
import torch

from kinemae.data_tools.components import component_names
from kinemae.data_tools.randomness import generator
from kinemae.pretrain.masking.base import Masking
from kinemae.pretrain.masking.blocks import BlockMasking
from kinemae.pretrain.masking.frame import FrameMasking
from kinemae.pretrain.masking.future import FutureMasking
from kinemae.pretrain.masking.motion import MotionMasking
from kinemae.pretrain.masking.tube import TubeMasking
from kinemae.pretrain.masking.uniform import UniformMasking
from kinemae.pretrain.model.tokens import TokenGrid
from tests.default_components import build_default

FOLDER = "kinemae.pretrain.masking"
GRID = TokenGrid(4, 6, 5)
GRIDS = [GRID, TokenGrid(8, 14, 14), TokenGrid(1, 6, 5), TokenGrid(3, 1, 20), TokenGrid(16, 1, 1)]
KINDS = [TubeMasking, UniformMasking, BlockMasking, FrameMasking, MotionMasking]


def chance(sample=0):
    return generator(7, purpose="masking", sample=sample)


def some_motion(grid):
    """Motion of a clip with half of its tokens still."""
    return (torch.rand(grid.tokens, generator=chance(99)) - 0.5).clamp(min=0) * 100


def split(masking, grid=GRID, sample=0):
    return masking.split(grid, chance(sample), some_motion(grid))


@pytest.mark.parametrize("name", component_names(FOLDER))
class TestContract:
    """The contract of maskings; a new file in the folder is tested automatically."""

    @pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: f"{grid.t}x{grid.h}x{grid.w}")
    def test_visible_and_hidden_tokens_are_disjoint_in_the_given_counts(self, name, grid):
        masking = build_default(FOLDER, name, Masking)
        try:
            counts = masking.counts(grid)
        except ValueError as refusal:
            assert "masking.args" in str(refusal) and grid != GRID
            return
        for sample in range(5):
            visible_K, hidden_M = split(masking, grid, sample)
            assert (len(visible_K), len(hidden_M)) == counts and min(counts) >= 1
            listed_X = torch.cat([visible_K, hidden_M]).sort().values
            assert (listed_X.diff() > 0).all() and listed_X[0] >= 0 and listed_X[-1] < grid.tokens
            assert len(listed_X) == grid.tokens or isinstance(masking.at(0), FutureMasking)
            assert visible_K.dtype == hidden_M.dtype == torch.int64

    def test_visible_tokens_are_ascending_and_hidden_ones_in_random_order(self, name):
        masking = build_default(FOLDER, name, Masking)
        place_in_order = torch.zeros(GRID.tokens)
        times_hidden = torch.zeros(GRID.tokens)
        for sample in range(200):
            visible_K, hidden_M = split(masking, sample=sample)
            assert (visible_K.diff() > 0).all()
            place_in_order[hidden_M] += torch.arange(len(hidden_M)) / (len(hidden_M) - 1)
            times_hidden[hidden_M] += 1
        often = times_hidden > 50
        assert often.any()
        mean_place = place_in_order[often] / times_hidden[often]
        assert ((mean_place - 0.5).abs() < 5 * (1 / 12 / times_hidden[often]).sqrt()).all()

    def test_random_numbers_come_from_the_generator_only(self, name):
        masking = build_default(FOLDER, name, Masking)
        torch.manual_seed(0)
        first = torch.cat(split(masking))
        torch.manual_seed(1)
        assert torch.equal(first, torch.cat(split(masking)))
        assert not torch.equal(first, torch.cat(split(masking, sample=1)))

    def test_the_masking_of_a_step_is_a_function_of_the_step(self, name):
        one, other = (build_default(FOLDER, name, Masking) for _ in range(2))
        other.at(5)
        for step in range(20):
            assert one.at(step).counts(GRID) == other.at(step).counts(GRID)

    def test_needs_motion_is_true_if_motion_changes_the_mask(self, name):
        masking = build_default(FOLDER, name, Masking)
        if not masking.needs_motion:
            visible_K, hidden_M = masking.split(GRID, chance())
            assert torch.equal(torch.cat([visible_K, hidden_M]), torch.cat(split(masking)))
        assert any(masking.at(step).needs_motion for step in range(20)) == masking.needs_motion


def test_a_tube_hides_the_same_positions_in_all_slices():
    visible_K, hidden_M = split(TubeMasking(ratio=0.7))
    for index, count in ((visible_K, 30 - 21), (hidden_M, 21)):
        places = index.sort().values.view(GRID.t, count) % GRID.per_slice
        assert (places == places[0]).all()


def test_uniform_masking_differs_between_slices():
    visible_K, _ = split(UniformMasking(ratio=0.7))
    assert len((visible_K // GRID.per_slice).bincount(minlength=GRID.t).unique()) > 1


def test_a_tube_of_0_9_leaves_videomaes_160_tokens():
    assert TubeMasking(ratio=0.9).counts(TokenGrid(8, 14, 14)) == (160, 1408)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ratio", [0.0, 1.0, -0.1, float("nan")])
def test_a_ratio_that_hides_nothing_or_everything_is_refused(kind, ratio):
    with pytest.raises(
        ValueError, match=f"masking.args.ratio must lie strictly between 0 and 1, got {ratio}"
    ):
        kind(ratio=ratio)


@pytest.mark.parametrize("kind", KINDS)
def test_a_grid_on_which_the_ratio_hides_nothing_is_refused(kind):
    with pytest.raises(
        ValueError, match=r"ratio=0.1 leaves 1 tokens visible and 0 hidden on a grid of 1x1x1"
    ):
        kind(ratio=0.1).counts(TokenGrid(1, 1, 1))
