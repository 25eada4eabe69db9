import pytest
import torch

from data_tools.parts import Part, build_part, part_names
from data_tools.randomness import generator
from pretrain.masking.base import Masking, TokenSplit, check_split, wanted_count
from pretrain.masking.tube import TubeMasking
from pretrain.masking.uniform import UniformMasking
from pretrain.model.tokens import TokenGrid

FOLDER = "pretrain.masking"
GRID = TokenGrid(4, 6, 5)


def chance(sample=0):
    return generator(7, purpose="masking", sample=sample)


@pytest.mark.parametrize("name", part_names(FOLDER))
class TestContract:
    """What every masking promises; a new file in the folder is tested without a line here."""

    def test_visible_and_hidden_make_up_the_grid_in_the_promised_numbers(self, name):
        masking = build_part(FOLDER, Part(name=name), Masking)
        visible_K, hidden_M = masking.split(GRID, chance())
        assert (len(visible_K), len(hidden_M)) == masking.counts(GRID)
        assert torch.equal(torch.cat([visible_K, hidden_M]).sort().values, torch.arange(GRID.tokens))
        assert visible_K.dtype == hidden_M.dtype == torch.int64

    def test_visible_tokens_ascend_and_hidden_ones_come_in_random_order(self, name):
        visible_K, hidden_M = build_part(FOLDER, Part(name=name), Masking).split(GRID, chance())
        assert (visible_K.diff() > 0).all()
        assert not (hidden_M.diff() > 0).all()

    def test_chance_comes_from_the_generator_alone(self, name):
        masking = build_part(FOLDER, Part(name=name), Masking)
        torch.manual_seed(0)
        first = torch.cat(masking.split(GRID, chance()))
        torch.manual_seed(1)
        assert torch.equal(first, torch.cat(masking.split(GRID, chance())))
        assert not torch.equal(first, torch.cat(masking.split(GRID, chance(sample=1))))


def test_a_tube_hides_the_same_places_in_every_slice():
    visible_K, hidden_M = TubeMasking(ratio=0.7).split(GRID, chance())
    for index, count in ((visible_K, 30 - 21), (hidden_M, 21)):
        places = index.sort().values.view(GRID.t, count) % GRID.per_slice
        assert (places == places[0]).all()


def test_uniform_masking_treats_slices_unlike():
    visible_K, _ = UniformMasking(ratio=0.7).split(GRID, chance())
    assert len((visible_K // GRID.per_slice).bincount(minlength=GRID.t).unique()) > 1


def test_a_tube_of_0_9_leaves_videomaes_160_tokens():
    assert TubeMasking(ratio=0.9).counts(TokenGrid(8, 14, 14)) == (160, 1408)


@pytest.mark.parametrize("kind", [TubeMasking, UniformMasking])
@pytest.mark.parametrize("ratio", [0.0, 1.0, -0.1, float("nan")])
def test_a_ratio_that_hides_nothing_or_everything_is_refused(kind, ratio):
    with pytest.raises(
        ValueError, match=f"masking.args.ratio must lie strictly between 0 and 1, got {ratio}"
    ):
        kind(ratio=ratio)


@pytest.mark.parametrize("kind", [TubeMasking, UniformMasking])
def test_a_grid_on_which_the_ratio_hides_nothing_is_refused(kind):
    with pytest.raises(
        ValueError, match=r"ratio=0.1 leaves 1 tokens visible and 0 hidden on a grid of 1x1x1"
    ):
        kind(ratio=0.1).counts(TokenGrid(1, 1, 1))


def test_a_split_that_leaves_nothing_to_see_is_refused():
    with pytest.raises(
        ValueError, match=r"leaves 0 tokens visible and 4 hidden .*change the ratio, clip.size"
    ):
        check_split(0, 4, ratio=0.9, grid=TokenGrid(1, 2, 2))


def test_the_wanted_tokens_are_a_share_of_the_hidden_ones_and_never_none():
    assert [wanted_count(10, share) for share in (1.0, 0.5, 0.01)] == [10, 5, 1]


def test_a_clips_split_is_a_function_of_the_seed_and_its_place_in_the_run():
    split = TokenSplit(masking=UniformMasking(ratio=0.5), grid=GRID, seed=3, predict_share=0.5)
    black, white = torch.zeros(3, 8, 24, 20), torch.ones(3, 8, 24, 20)
    first, again, other = split(black, 5), split(white, 5), split(black, 6)
    assert torch.equal(first["visible"], again["visible"]) and torch.equal(first["wanted"], again["wanted"])
    assert not torch.equal(first["visible"], other["visible"])
    assert len(first["wanted"]) == 30 and not set(first["wanted"].tolist()) & set(first["visible"].tolist())
