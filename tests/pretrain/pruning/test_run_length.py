import re

import pytest
import torch

from kinemae.pretrain.model.motion_energy import change
from kinemae.pretrain.pruning.run_length import RunLengthPruning

PATCH = (2, 4, 4)
T = 10


def clip_of(changes):
    """A clip of one position with these differences between successive tokens, in grey levels."""
    grey_t = 100 + torch.tensor([0, *changes]).cumsum(0)
    return grey_t.to(torch.uint8).repeat_interleave(2).view(1, -1, 1, 1).expand(1, -1, 4, 4)


def score_tokens(clip_BTHW, **args):
    worth = RunLengthPruning(**args).score_tokens(clip_BTHW, PATCH)
    return worth.is_kept_BN.int()[0].tolist(), worth.run_length_BN[0].tolist()


def test_the_first_token_of_a_run_is_kept_with_the_run_length():
    kept, run = score_tokens(clip_of([0, 0, 9, 9, 0]))
    assert kept == [1, 0, 0, 1, 1, 0]
    assert run == [3, 2, 1, 1, 2, 1]


def test_a_difference_equal_to_the_threshold_is_static():
    assert score_tokens(clip_of([3, 4]), threshold=3.0)[0] == [1, 0, 1]
    assert score_tokens(clip_of([0, 1]), threshold=0.0)[0] == [1, 0, 1]


def test_a_run_ends_at_the_longest_embedded_length():
    kept, run = score_tokens(clip_of([0] * 6), run_lengths=3)
    assert kept == [1, 0, 0, 1, 0, 0, 1]
    assert run == [3, 2, 1, 3, 2, 1, 1]


def test_a_slow_drift_is_kept_after_the_longest_run():
    kept, _ = score_tokens(clip_of([1] * 9), threshold=2.0, run_lengths=5)
    assert kept == [1, 0, 0, 0, 0, 1, 0, 0, 0, 0]


def naive(change_tS, threshold, longest):
    """Kept tokens and run lengths by a loop over positions and slices."""
    t, places = len(change_tS), len(change_tS[0])
    kept, run = ([[0] * places for _ in range(t)] for _ in range(2))
    for place in range(places):
        begin = 0
        for i in range(t):
            if change_tS[i][place] > threshold or i - begin == longest:
                begin = i
            kept[i][place] = int(i == begin)
        for i in range(t):
            run[i][place] = 1
            while i + run[i][place] < t and not kept[i + run[i][place]][place]:
                run[i][place] += 1
    return [[value for row in table for value in row] for table in (kept, run)]


@pytest.mark.parametrize("longest", [2, 3, 8])
@pytest.mark.parametrize("threshold", [0.0, 2.0, 5.0])
def test_it_equals_a_loop_over_positions_and_slices(longest, threshold):
    chance = torch.Generator().manual_seed(longest)
    step_BtS = torch.randint(-4, 5, (3, T, 6), generator=chance) * torch.randint(
        0, 2, (3, T, 6), generator=chance
    )
    grey = 120 + step_BtS.cumsum(1).view(3, T, 2, 3)
    clip_BTHW = grey.to(torch.uint8).repeat_interleave(2, 1).repeat_interleave(4, 2).repeat_interleave(4, 3)
    worth = RunLengthPruning(threshold=threshold, run_lengths=longest).score_tokens(clip_BTHW, PATCH)
    for row, change_N in enumerate(change(clip_BTHW, PATCH)):
        kept, run = naive(change_N.view(T, 6).tolist(), threshold, longest)
        assert worth.is_kept_BN[row].int().tolist() == kept
        assert worth.run_length_BN[row].tolist() == run


def test_run_lengths_of_kept_tokens_add_up_to_the_grid():
    chance = torch.Generator().manual_seed(0)
    clip_BTHW = torch.randint(100, 104, (4, 2 * T, 8, 8), generator=chance, dtype=torch.uint8)
    worth = RunLengthPruning(threshold=1.2).score_tokens(clip_BTHW, PATCH)
    assert 0 < worth.is_kept_BN.sum() < worth.is_kept_BN.numel()
    assert ((worth.run_length_BN * worth.is_kept_BN).sum(1) == T * 4).all()


def test_tokens_that_are_not_static_have_equal_and_higher_scores():
    worth = RunLengthPruning(keep=0.5).score_tokens(clip_of([0, 9, 90, 0]), PATCH)
    assert worth.score_BN[0].tolist() == [1, 0, 1, 1, 0]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"keep": 0.0}, "pruning.args.keep must be a fraction above 0 and at most 1"),
        ({"threshold": -1.0}, "pruning.args.threshold must be at least 0 grey levels, got -1.0"),
        ({"threshold": float("nan")}, "pruning.args.threshold must be at least 0 grey levels, got nan"),
        ({"run_lengths": 1}, "pruning.args.run_lengths must be at least 2, got 1"),
    ],
)
def test_a_wrong_argument_is_refused(args, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        RunLengthPruning(**args)
