import pytest
import torch

from kinemae.data_tools.components import Component, build_component
from kinemae.data_tools.randomness import generator
from kinemae.pretrain.masking.base import Masking
from kinemae.pretrain.masking.tube import TubeMasking
from kinemae.pretrain.model.tokens import TokenGrid
from kinemae.pretrain.token_selection import TokenSelection

GRID = TokenGrid(4, 6, 5)
PATCH = (2, 2, 2)
STILL_THW = torch.zeros(8, 12, 10, dtype=torch.uint8)


def jitter(**args):
    return build_component(
        "kinemae.pretrain.masking",
        Component(name="jitter", args={"of": "tube", "min_ratio": 0.5, "max_ratio": 0.9, "levels": 3} | args),
        Masking,
    )


def test_each_level_is_the_masking_with_that_ratio():
    expected = [TubeMasking(ratio=ratio).counts(GRID) for ratio in (0.5, 0.7, 0.9)]
    assert [masking.counts(GRID) for masking in jitter().maskings] == expected
    assert all(type(jitter().at(step)) is TubeMasking for step in range(10))


@pytest.mark.slow
def test_levels_are_equally_frequent_and_their_order_depends_on_the_seed():
    def hidden(seed):
        return [jitter(seed=seed).at(step).counts(GRID)[1] for step in range(900)]

    often = torch.tensor(hidden(0)).unique(return_counts=True)[1]
    assert len(often) == 3 and ((often - 300).abs() < 75).all()
    assert hidden(0) == hidden(0) != hidden(1)


def test_clips_of_a_step_have_equal_counts_and_different_masks():
    split = TokenSelection(masking=jitter(), grid=GRID, patch=PATCH, seed=3, clips_per_step=4)
    seen = set()
    for step in range(12):
        clips = [split(STILL_THW, 4 * step + clip) for clip in range(4)]
        assert {(len(clip["visible"]), len(clip["target"])) for clip in clips} == {split.counts(step)}
        assert not torch.equal(clips[0]["target"], clips[1]["target"])
        seen.add(split.counts(step))
    assert len(seen) == 3


def test_without_a_step_it_is_the_masking_of_step_0():
    masking = jitter()
    assert masking.counts(GRID) == masking.at(0).counts(GRID)
    alone, first = (m.split(GRID, generator(0, purpose="masking")) for m in (masking, masking.at(0)))
    assert torch.equal(torch.cat(alone), torch.cat(first))


def test_a_level_that_is_invalid_for_the_grid_is_refused_at_the_start():
    masking = jitter(of="frame", min_ratio=0.1, max_ratio=0.5)
    with pytest.raises(ValueError, match=r"ratio=0.1 leaves 120 tokens visible and 0 hidden"):
        masking.counts(GRID)


def test_needs_motion_is_that_of_the_masking():
    assert not jitter().needs_motion
    masking = jitter(of="motion", args={"side": "visible", "tubes": False})
    assert masking.needs_motion and masking.at(3).side == "visible"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"of": "tubes"}, r"masking.args.of must be one of .*tube.*, got 'tubes'"),
        ({"of": "jitter"}, r"masking.args.of must be one of .*, got 'jitter'"),
        ({"args": {"ratio": 0.5}}, "masking.args.args must not hold ratio"),
        ({"args": {"raito": 0.5}}, "masking.args.args: tube has no argument 'raito'; did you mean 'ratio'"),
        ({"args": [1]}, r"masking.args.args must be that masking's arguments by name, got \[1\]"),
        ({"min_ratio": 0.9}, r"masking.args must hold 0 < min_ratio < max_ratio < 1, got \(0.9, 0.9\)"),
        ({"max_ratio": 1.0}, r"masking.args must hold 0 < min_ratio < max_ratio < 1, got \(0.5, 1.0\)"),
        ({"min_ratio": float("nan")}, "masking.args must hold 0 < min_ratio < max_ratio < 1"),
        ({"levels": 1}, "masking.args.levels must be at least 2, got 1"),
    ],
)
def test_a_wrong_argument_is_refused(args, message):
    with pytest.raises(ValueError, match=message):
        jitter(**args)
