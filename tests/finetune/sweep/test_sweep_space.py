"""Search space: lists and ranges of keys, grids and drawn trials."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kinemae.finetune.config import FinetuneConfig
from kinemae.finetune.sweep.space import Choice, Range, draw_trials, read_space


def space(*overrides):
    return read_space(FinetuneConfig, overrides)


def test_lists_are_swept_and_other_overrides_stay():
    axes, others = space("optim.lr=[1e-4, 3e-4]", "epochs=3", "head=[linear, {name: attentive}]", "seed=1")

    assert axes == [
        Choice(key="optim.lr", values=("1e-4", "3e-4")),
        Choice(key="head", values=("linear", "{name: attentive}")),
    ]
    assert others == ["epochs=3", "seed=1"]


def test_a_list_of_a_key_that_holds_a_list_is_a_value():
    assert space("adapt.targets=[qkv, proj]") == ([], ["adapt.targets=[qkv, proj]"])
    axes, _ = space("adapt.targets=[[qkv], [qkv, proj]]")
    assert axes == [Choice(key="adapt.targets", values=("[qkv]", "[qkv, proj]"))]


def test_mappings_other_than_ranges_are_values():
    axes, others = space("head={name: linear}", "optim.lr={log_uniform: [1e-4, 1e-2]}", "mix={mixup: 0.8}")
    assert axes == [Range(key="optim.lr", kind="log_uniform", low=1e-4, high=1e-2)]
    assert others == ["head={name: linear}", "mix={mixup: 0.8}"]


@pytest.mark.parametrize(
    ("override", "error"),
    [
        ("optim.lr=[]", "optim.lr must list at least one value"),
        ("optim.lr=[1e-3, 2e-3, 1e-3]", "optim.lr must list each value once"),
        ("optim.lr={log_uniform: [0, 1]}", "optim.lr must have a LOW above 0"),
        ("optim.lr={uniform: [2, 1]}", r"optim.lr must be a range \{uniform: \[LOW, HIGH\]\}"),
        ("optim.lr={uniform: [1]}", "optim.lr must be a range"),
        ("optim.lr={uniform: [a, b]}", "optim.lr must be a range"),
        ("adapt.rank={int_uniform: [1.5, 3]}", "adapt.rank must have whole numbers"),
    ],
)
def test_a_wrong_space_is_refused(override, error):
    with pytest.raises(ValueError, match=error):
        space(override)


def test_a_key_is_swept_once():
    with pytest.raises(ValueError, match=r"optim\.lr must be given once"):
        space("optim.lr=[1, 2]", "optim.lr=[3, 4]")


def test_the_grid_has_every_combination():
    axes, _ = space("optim.lr=[1, 2]", "drop_path=[0.1, 0.2, 0.3]")
    trials = draw_trials(axes, trials=None, seed=0)
    assert len(trials) == 6 and trials[1] == {"optim.lr": "1", "drop_path": "0.2"}


def test_trials_of_a_grid_are_not_repeated_and_depend_on_the_seed():
    axes, _ = space("optim.lr=[1, 2, 3, 4]", "drop_path=[0.1, 0.2, 0.3]")
    drawn = draw_trials(axes, trials=5, seed=0)

    assert len({tuple(values.items()) for values in drawn}) == 5
    assert drawn == draw_trials(axes, trials=5, seed=0) != draw_trials(axes, trials=5, seed=1)
    with pytest.raises(ValueError, match=r"sweep\.trials must be at most 12, the size of the grid, got 13"):
        draw_trials(axes, trials=13, seed=0)


def test_ranges_need_a_number_of_trials_and_more_trials_keep_the_first():
    axes, _ = space("optim.lr={log_uniform: [1e-4, 1e-2]}", "adapt.rank=[4, 8]")
    with pytest.raises(ValueError, match=r"sweep\.trials must be a number"):
        draw_trials(axes, trials=None, seed=0)
    assert draw_trials(axes, trials=5, seed=0)[:3] == draw_trials(axes, trials=3, seed=0)


@given(share=st.floats(0, 1, exclude_max=True), low=st.floats(1e-6, 1), factor=st.floats(1.1, 1e4))
def test_drawn_values_lie_in_the_range(share, low, factor):
    for kind in ("uniform", "log_uniform"):
        value = float(Range(key="k", kind=kind, low=low, high=low * factor).draw(share))
        assert low * 0.999 <= value <= low * factor * 1.001
    middle = float(Range(key="k", kind="log_uniform", low=low, high=low * factor).draw(0.5))
    assert middle == pytest.approx(low * math.sqrt(factor), rel=1e-3)


@given(share=st.floats(0, 1, exclude_max=True), low=st.integers(-5, 5), more=st.integers(1, 9))
def test_whole_numbers_include_both_ends(share, low, more):
    axis = Range(key="k", kind="int_uniform", low=low, high=low + more)
    assert low <= int(axis.draw(share)) <= low + more
    assert {int(axis.draw(number / (more + 1))) for number in range(more + 1)} == set(
        range(low, low + more + 1)
    )
