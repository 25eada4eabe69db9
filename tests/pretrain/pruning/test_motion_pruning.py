import pytest
import torch

from kinemae.pretrain.model.motion_energy import motion
from kinemae.pretrain.pruning.motion import MotionPruning

PATCH = (2, 4, 4)
PER_SLICE, TOKENS = 6, 30


def clips():
    """Three clips: a moving one, one with a single moving token, and a still one."""
    chance = torch.Generator().manual_seed(0)
    luma_BTHW = torch.full((3, 10, 8, 12), 60, dtype=torch.uint8)
    luma_BTHW[0] = torch.randint(0, 256, (10, 8, 12), generator=chance, dtype=torch.uint8)
    luma_BTHW[1, 5, 4:, 4:8] = 200
    return luma_BTHW


def test_the_score_is_the_motion_and_keep_takes_the_highest():
    worth = MotionPruning(keep=0.4).score_tokens(clips(), PATCH)
    assert torch.equal(worth.score_BN, motion(clips(), PATCH))
    for score_N, is_kept_N in zip(worth.score_BN, worth.is_kept_BN, strict=True):
        assert is_kept_N.sum() == 12
        assert score_N[is_kept_N].min() >= score_N[~is_kept_N].max()


def test_a_threshold_keeps_tokens_above_it_and_at_least_as_many_as_in_a_slice():
    worth = MotionPruning(threshold=85.0).score_tokens(clips(), PATCH)
    lively, lone, still = worth.is_kept_BN
    assert torch.equal(lively, worth.score_BN[0] > 85) and PER_SLICE < lively.sum() < TOKENS
    assert lone.sum() == PER_SLICE and bool(lone[worth.score_BN[1].argmax()])
    assert still.nonzero()[:, 0].tolist() == list(range(PER_SLICE))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({}, "pruning.args must hold either keep"),
        ({"keep": 0.5, "threshold": 3.0}, "pruning.args must hold either keep"),
        ({"keep": 1.5}, "pruning.args.keep must be a fraction above 0 and at most 1"),
        ({"threshold": -1.0}, "pruning.args.threshold must be at least 0 grey levels, got -1.0"),
    ],
)
def test_a_wrong_argument_is_refused(args, message):
    with pytest.raises(ValueError, match=message):
        MotionPruning(**args)
