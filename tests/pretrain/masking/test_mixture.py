import pytest
import torch

from kinemae.data_tools.components import Component, build_component
from kinemae.pretrain.masking.base import Masking
from kinemae.pretrain.masking.future import FutureMasking
from kinemae.pretrain.masking.motion import MotionMasking
from kinemae.pretrain.masking.tube import TubeMasking
from kinemae.pretrain.masking.uniform import UniformMasking
from kinemae.pretrain.model.tokens import TokenGrid
from kinemae.pretrain.token_selection import TokenSelection

GRID = TokenGrid(4, 6, 5)
PATCH = (1, 2, 2)
PARTS = {"future": {"weight": 3}, "uniform": {"args": {"ratio": 0.5}}}


def mixture(parts=PARTS, **args):
    component = Component(name="mixture", args={"parts": parts, **args})
    return build_component("kinemae.pretrain.masking", component, Masking)


def test_each_step_uses_one_part_with_its_arguments():
    kinds = {type(mixture().at(step)) for step in range(20)}
    assert kinds == {FutureMasking, UniformMasking}
    uniform = next(part for part in map(mixture().at, range(20)) if isinstance(part, UniformMasking))
    assert uniform.counts(GRID) == (60, 60)


def test_parts_are_drawn_by_their_weights_and_the_seed():
    def drawn(**args):
        masking = mixture(**args)
        return [type(masking.at(step)) for step in range(1200)]

    assert abs(drawn().count(FutureMasking) - 900) < 5 * (1200 * 0.75 * 0.25) ** 0.5
    assert drawn() == drawn() != drawn(seed=1)
    equal = drawn(parts=["tube", "uniform", "future"])
    assert all(abs(equal.count(kind) - 400) < 80 for kind in (TubeMasking, UniformMasking, FutureMasking))


def test_clips_of_a_step_have_equal_counts_and_different_masks_as_the_part_alone():
    split = TokenSelection(masking=mixture(), grid=GRID, patch=PATCH, seed=3, clips_per_step=4)
    seen = set()
    for step in range(12):
        clips = [split(None, 4 * step + clip) for clip in range(4)]
        assert {(len(clip["visible"]), len(clip["target"])) for clip in clips} == {split.counts(step)}
        assert not torch.equal(clips[0]["target"], clips[1]["target"])
        alone = TokenSelection(masking=mixture().at(step), grid=GRID, patch=PATCH, seed=3, clips_per_step=4)
        assert torch.equal(alone(None, 4 * step)["target"], clips[0]["target"])
        seen.add(split.counts(step))
    assert len(seen) == 2


def test_motion_is_needed_if_a_part_needs_it_and_only_that_part_gets_it():
    masking = mixture(["tube", "motion"])
    assert masking.needs_motion and not mixture().needs_motion
    split = TokenSelection(masking=masking, grid=GRID, patch=PATCH, seed=0)
    luma_THW = torch.zeros(4, 12, 10, dtype=torch.uint8)
    assert split.needs_luma and {type(masking.at(step)) for step in range(9)} == {TubeMasking, MotionMasking}
    assert all(len(split(luma_THW, clip)["visible"]) == 12 for clip in range(9))


def test_a_jittered_part_changes_its_ratio():
    jitter = {"args": {"of": "future", "min_ratio": 0.5, "max_ratio": 0.75, "levels": 2}}
    masking = mixture({"jitter": jitter, "tube": {}})
    assert {masking.at(step).counts(GRID) for step in range(30)} == {(15, 60), (8, 60), (12, 108)}


def test_a_part_that_is_invalid_for_the_grid_is_refused_at_the_start():
    with pytest.raises(ValueError, match=r"masking.args: expected at least 1 slice of context"):
        mixture({"tube": {}, "future": {"weight": 0.001}}).counts(TokenGrid(2, 6, 5))


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([], r"masking.args.parts must name at least one masking, each once"),
        (["tube", "tube"], r"masking.args.parts must name at least one masking, each once"),
        (["tubes"], r"masking.args.parts.tubes: masking.name: no masking named 'tubes'; did you mean 'tube'"),
        ({"mixture": {}}, "masking.args.parts.mixture must be another masking: mixture ones do not nest"),
        ({"tube": {"ratio": 0.5}}, "masking.args.parts.tube must hold nothing but weight and args"),
        ({"tube": {"weight": 0}}, "masking.args.parts.tube.weight must be a number above 0, got 0"),
        (
            {"tube": {"weight": float("inf")}},
            "masking.args.parts.tube.weight must be a number above 0, got inf",
        ),
        ({"tube": {"args": [1]}}, r"masking.args.parts.tube.args must be a mapping, got \[1\]"),
        ({"tube": {"args": {"ratio": 2.0}}}, "masking.args.parts.tube: masking.args.ratio must lie strictly"),
    ],
)
def test_a_wrong_argument_is_refused(parts, message):
    with pytest.raises(ValueError, match=message):
        mixture(parts)


def test_jitter_of_a_mixture_is_refused():
    component = Component(name="jitter", args={"of": "mixture", "min_ratio": 0.5, "max_ratio": 0.9})
    with pytest.raises(ValueError, match=r"masking.args.of must be one of .*, got 'mixture'"):
        build_component("kinemae.pretrain.masking", component, Masking)
