"""When a run validates, which validation is the best, and when a run ends early."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kinemae.finetune.validation.selection import (
    MOST_BY_DEFAULT,
    Selection,
    ValidateConfig,
    is_due,
    is_maximized,
)

VALUES = st.lists(st.one_of(st.none(), st.floats(allow_nan=True), st.integers(-3, 3)), max_size=30)


def history(values, metric="top1"):
    return [{"step": step, metric: value} for step, value in enumerate(values)]


def selection(**settings):
    return Selection(metric="top1", **{"maximize": True, **settings})


@given(steps=st.integers(1, 3000), epoch=st.floats(0.3, 500))
def test_a_run_validates_at_most_20_times_by_default_and_at_the_last_step(steps, epoch):
    interval = ValidateConfig().interval(epoch, steps)

    due = [done for done in range(1, steps + 1) if is_due(done, interval=interval, steps=steps)]

    assert due[-1] == steps
    assert len(due) <= MOST_BY_DEFAULT + 1
    assert all(later - earlier >= math.floor(epoch) for earlier, later in pairwise(due[:-1]))


def test_the_interval_is_given_in_steps_or_in_epochs():
    for settings, expected in (
        ({"every_steps": 3}, [3, 6, 9, 10]),
        ({"every_epochs": 1.0}, [3, 5, 8, 10]),
        ({"every_epochs": 0.01}, list(range(1, 11))),
    ):
        interval = ValidateConfig(**settings).interval(2.5, 10)
        assert [done for done in range(1, 11) if is_due(done, interval=interval, steps=10)] == expected


@given(VALUES)
def test_the_best_line_is_the_first_with_the_largest_finite_value(values):
    lines = history(values)
    finite = [value for value in values if value is not None and math.isfinite(value)]

    best = selection().best(lines)

    assert best is (lines[values.index(max(finite))] if finite else None)


def test_smaller_values_can_be_better():
    assert selection(maximize=False).best(history([3, 1, None, 1, 2]))["step"] == 1


@given(VALUES, st.integers(1, 4), st.sampled_from([0.0, 0.5]))
def test_a_run_ends_after_patience_validations_without_an_improvement(values, patience, min_delta):
    chosen = selection(patience=patience, min_delta=min_delta)
    ended = next(
        (count for count in range(len(values) + 1) if chosen.has_ended(history(values[:count]))), None
    )

    before = history(values if ended is None else values[: ended - patience])
    if ended is not None:
        # None of the last ones exceeds the best before them by more than min_delta.
        reference = chosen.gain(chosen.best(before) or {})
        assert all(chosen.gain(line) <= reference + min_delta for line in history(values[:ended])[-patience:])
        assert chosen.has_ended(history([*values[:ended]]))
    else:
        assert all(not chosen.has_ended(history(values[:count])) for count in range(len(values)))


@pytest.mark.parametrize(
    ("values", "min_delta", "has_ended"),
    [
        ([1, 2, 3, 4], 0.0, False),
        ([4, 3, 2], 0.0, True),
        ([4, 4, 4], 0.0, True),
        ([4, 3, 5, 4], 0.0, False),
        ([1.0, 1.1, 1.2], 0.5, True),
        ([1.0, 1.3, 1.6], 0.5, False),  # two small steps make a large one
        ([None, math.nan], 0.0, True),
    ],
)
def test_patience_of_two(values, min_delta, has_ended):
    assert selection(patience=2, min_delta=min_delta).has_ended(history(values)) == has_ended


def test_the_direction_of_a_metric_is_that_of_the_task_or_of_its_name():
    assert is_maximized("top1", task_metric="top1", maximize=True)
    assert not is_maximized("mae", task_metric="mae", maximize=False)
    assert not is_maximized("speed/rmse", task_metric="mean_skill", maximize=True)
    assert not is_maximized("loss", task_metric="top1", maximize=True)
    assert not is_maximized("mean_rmse", task_metric="mean_skill", maximize=True)
    assert not is_maximized("speed.standardized_mae", task_metric="mean_skill", maximize=True)
    assert is_maximized("balanced_accuracy", task_metric="mae", maximize=False)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"every_epochs": -1.0}, "validate.every_epochs must be null or 0 or more"),
        ({"every_steps": 0}, "validate.every_steps must be null or at least 1"),
        ({"every_steps": 5, "every_epochs": 1.0}, "validate.every_steps must be null if"),
        ({"fraction": 1.0}, r"validate.fraction must be null or lie in \[0, 1\)"),
        ({"patience": -1}, "validate.patience must be 0"),
        ({"patience": 3, "every_epochs": 0.0}, "validate.patience must be 0 with validate.every_epochs=0"),
        ({"min_delta": -0.1}, "validate.min_delta must be 0 or more"),
        ({"videos": -1}, "validate.videos must be 0"),
        ({"spatial_crops": 2}, "validate.spatial_crops must be 1 or 3"),
        ({"temporal_clips": 0}, "validate.temporal_clips must be at least 1"),
    ],
)
def test_wrong_settings_are_refused_by_key(wrong, message):
    with pytest.raises(ValueError, match=message):
        ValidateConfig(**wrong)
