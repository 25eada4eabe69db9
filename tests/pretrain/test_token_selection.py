from collections import Counter

import pytest
import torch

from kinemae.data_tools.randomness import generator
from kinemae.pretrain.masking.frame import FrameMasking
from kinemae.pretrain.masking.motion import MotionMasking
from kinemae.pretrain.masking.tube import TubeMasking
from kinemae.pretrain.masking.uniform import UniformMasking
from kinemae.pretrain.model.motion_energy import motion
from kinemae.pretrain.model.tokens import TokenGrid
from kinemae.pretrain.pruning.base import Pruning
from kinemae.pretrain.pruning.motion import MotionPruning
from kinemae.pretrain.pruning.run_length import RunLengthPruning
from kinemae.pretrain.token_selection import TokenSelection, running_cell_first

PATCH = (2, 4, 4)
GRID = TokenGrid(4, 6, 5)
SIZE = (8, 24, 20)
STILL_THW = torch.full(SIZE, 90, dtype=torch.uint8)


def moving(seed=0):
    """A clip with tokens of different motion, still ones, and ones that start to move late."""
    chance = torch.Generator().manual_seed(seed)
    strength = torch.randint(0, 40, (4, 6, 5), generator=chance).float()
    strength[:, :, :2] = 0
    strength_THW = strength.repeat_interleave(2, 0).repeat_interleave(4, 1).repeat_interleave(4, 2)
    return (100 + strength_THW * torch.rand(SIZE, generator=chance)).to(torch.uint8)


def token_selection(masking, **options):
    return TokenSelection(masking=masking, grid=GRID, patch=PATCH, seed=3, **options)


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


class LearnedPruning(Pruning):
    keep = 0.5
    is_learned = True

    def score_tokens(self, luma_BTHW, patch):
        raise AssertionError("the encoder scores")


@pytest.mark.parametrize("masking", [TubeMasking(ratio=0.7), UniformMasking(ratio=0.7)])
@pytest.mark.parametrize("predict_ratio", [1.0, 0.5, 0.001])
def test_without_pruning_the_selection_is_the_masks_with_its_first_hidden_tokens(masking, predict_ratio):
    found = token_selection(masking, predict_ratio=predict_ratio)(moving(), 5)
    visible_K, hidden_M = masking.split(GRID, generator(3, purpose="masking", sample=5))
    wanted = max(1, round(len(hidden_M) * predict_ratio))
    assert same(found, {"visible": visible_K, "target": hidden_M[:wanted]})


def test_the_selection_is_a_function_of_the_seed_and_the_clip_index():
    split = token_selection(UniformMasking(ratio=0.5), predict_ratio=0.5)
    first, again, other = split(moving(0), 5), split(moving(1), 5), split(moving(0), 6)
    assert same(first, again) and not torch.equal(first["visible"], other["visible"])
    assert len(first["target"]) == 30 and not set(first["target"].tolist()) & set(first["visible"].tolist())


def test_a_masking_with_needs_motion_gets_the_motion():
    masking = MotionMasking(ratio=0.5, temperature=1e-9, tubes=False)
    found = token_selection(masking)(moving(), 0)
    most_first = motion(moving()[None], PATCH)[0].argsort(descending=True)
    assert set(found["target"].tolist()) == set(most_first[:60].tolist())


@pytest.mark.parametrize("keep", [0.05, 0.5, 1.0])
@pytest.mark.parametrize("predict_ratio", [0.3, 1.0])
@pytest.mark.parametrize("kind", [MotionPruning, RunLengthPruning])
@pytest.mark.parametrize("predict", ["random", "running_cell"])
def test_budgets_are_exact_and_filled_by_score(kind, keep, predict_ratio, predict):
    masking, pruning, clip_THW = UniformMasking(ratio=0.6), kind(keep=keep), moving()
    split = token_selection(masking, pruning=pruning, predict_ratio=predict_ratio, predict=predict)
    found = split(clip_THW, 5)
    assert (len(found["visible"]), len(found["target"])) == split.counts()
    assert split.counts() == (max(1, round(48 * keep)), max(1, round(72 * keep * predict_ratio)))
    assert (found["visible"].diff() > 0).all()
    score_N = pruning.score_tokens(clip_THW[None], PATCH).score_BN[0]
    visible_K, hidden_M = masking.split(GRID, generator(3, purpose="masking", sample=5))
    for kept, pool, share in ((found["visible"], visible_K, keep), (found["target"], hidden_M, keep)):
        assert set(kept.tolist()) <= set(pool.tolist()) and len(set(kept.tolist())) == len(kept)
        # No kept token has a lower score than the last one within the fraction.
        bound = score_N[pool].sort(descending=True).values[max(1, round(len(pool) * share)) - 1]
        assert (score_N[kept] >= bound).all()


@pytest.mark.parametrize("predict", ["random", "running_cell"])
def test_a_keep_of_1_changes_nothing(predict):
    options = {"predict_ratio": 0.5, "predict": predict}
    masking = TubeMasking(ratio=0.7)
    for clip in range(10):
        plain = token_selection(masking, **options)(moving(), clip)
        pruned = token_selection(masking, pruning=MotionPruning(keep=1.0), **options)(moving(), clip)
        assert same(pruned, plain)
        selected = token_selection(masking, pruning=RunLengthPruning(keep=1.0), **options)(moving(), clip)
        assert selected.pop("run_length").shape == plain["visible"].shape and same(selected, plain)


def test_target_tokens_are_hidden_tokens_after_pruning_in_the_masks_order():
    masking, pruning = UniformMasking(ratio=0.6), MotionPruning(keep=0.5)
    _, hidden_M = masking.split(GRID, generator(3, purpose="masking", sample=5))
    left = token_selection(masking, pruning=pruning)(moving(), 5)["target"].tolist()
    assert left == [token for token in hidden_M.tolist() if token in set(left)]
    assert (
        token_selection(masking, pruning=pruning, predict_ratio=0.5)(moving(), 5)["target"].tolist()
        == left[:18]
    )


def test_ties_are_broken_at_random_per_clip():
    split = token_selection(TubeMasking(ratio=0.5), pruning=MotionPruning(keep=0.5), predict_ratio=0.5)
    assert same(split(STILL_THW, 7), split(STILL_THW, 7))
    kept, wanted = Counter(), Counter()
    for clip in range(600):
        found = split(STILL_THW, clip)
        kept.update(found["visible"].tolist())
        wanted.update(found["target"].tolist())
    for often, share in (
        (kept, 0.25),
        (wanted, 0.125),
    ):  # half visible, half of these kept; half of the rest predicted
        assert max(abs(often[token] / 600 - share) for token in range(GRID.tokens)) < 5 * (0.25 / 600) ** 0.5


def test_run_lengths_are_those_of_the_visible_tokens():
    pruning = RunLengthPruning(keep=0.5)
    found = token_selection(UniformMasking(ratio=0.5), pruning=pruning)(moving(), 2)
    assert torch.equal(
        found["run_length"], pruning.score_tokens(moving()[None], PATCH).run_length_BN[0, found["visible"]]
    )
    assert found["run_length"].max() > 1


def test_learned_pruning_gets_all_visible_tokens_and_fewer_target_tokens():
    split = token_selection(TubeMasking(ratio=0.5), pruning=LearnedPruning(), predict_ratio=0.5)
    assert split.counts() == (60, 15)
    plain = token_selection(TubeMasking(ratio=0.5), predict_ratio=0.25)
    assert same(split(moving(), 1), plain(moving(), 1))


def running_cell(grid, start):
    """Select tokens by a loop over slices and cells."""
    chosen = set()
    for t in range(grid.t):
        for number in ((start + t) % 4, (start + t + 1) % 4):  # two of four, which advance by one
            for row in range(number // 2, grid.h, 2):
                for column in range(number % 2, grid.w, 2):
                    chosen.add((t * grid.h + row) * grid.w + column)
    return chosen


@pytest.mark.parametrize(
    "grid", [GRID, TokenGrid(8, 14, 14), TokenGrid(1, 3, 3), TokenGrid(5, 1, 1), TokenGrid(3, 1, 4)]
)
def test_a_running_cell_chooses_half_of_each_cell_and_advances_per_slice(grid):
    chance = generator(0, purpose="masking")
    start = int(torch.randint(4, (), generator=generator(0, purpose="masking")))
    hidden_M = torch.randperm(grid.tokens, generator=generator(1, purpose="masking"))
    found = running_cell_first(hidden_M, grid, chance).tolist()
    chosen = running_cell(grid, start)
    assert found == [i for i in hidden_M.tolist() if i in chosen] + [
        i for i in hidden_M.tolist() if i not in chosen
    ]


def test_in_four_slices_a_running_cell_chooses_every_position_twice():
    for start in range(4):
        places = Counter(token % 30 for token in running_cell(GRID, start))
        assert set(places.values()) == {2} and len(places) == 30


@pytest.mark.parametrize("masking", [TubeMasking(ratio=0.9), UniformMasking(ratio=0.5), FrameMasking()])
def test_a_running_cell_takes_from_any_hidden_set_what_it_can_and_fills_up(masking):
    for predict_ratio in (0.2, 0.5, 0.8, 1.0):
        split = token_selection(masking, predict="running_cell", predict_ratio=predict_ratio)
        starts = set()
        for clip in range(20):
            found = split(STILL_THW, clip)
            assert len(found["target"]) == split.counts()[1]
            hidden = set(range(GRID.tokens)) - set(found["visible"].tolist())
            wanted = set(found["target"].tolist())
            fits = {
                start
                for start in range(4)
                if wanted <= (running := running_cell(GRID, start) & hidden) or running <= wanted <= hidden
            }
            assert fits
            starts |= fits if len(fits) == 1 else set()
        assert starts == set() or len(starts) > 1
