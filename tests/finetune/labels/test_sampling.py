"""Balanced order and flips by class, from the config of a fine-tuning run."""

import numpy as np
import pytest

from kinemae.data_tools.config import load_config
from kinemae.data_tools.index import open_index
from kinemae.data_tools.stream.mixture import BalancedClasses
from kinemae.finetune.config import FinetuneAugment, FinetuneConfig, FinetuneData
from kinemae.finetune.labels.sampling import flippable, training_source
from kinemae.finetune.tasks.base import Task
from kinemae.finetune.tasks.classification import Classification


@pytest.fixture
def labelled(synth_shards):
    """A data set, a task fitted to it, and its targets."""
    index = open_index(synth_shards / "train")
    task = Classification()
    task.fit(index, key="data.train=x")
    return index, task, task.read(index, key="data.train=x")


def test_balance_zero_keeps_the_order_of_the_data_set(labelled):
    index, task, targets = labelled
    assert training_source(index, task, targets, FinetuneData(train="x")) is index


def test_balance_groups_the_samples_by_the_label_of_the_task(labelled):
    index, task, targets = labelled
    source = training_source(index, task, targets, FinetuneData(train="x", balance=1.0))
    assert isinstance(source, BalancedClasses) and source.sizes == (4,) * 8
    assert [set(index.column("label")[members]) for members in source.members] == [{n} for n in range(8)]


def test_a_task_without_classes_cannot_be_balanced(labelled):
    index, _, targets = labelled
    with pytest.raises(
        ValueError, match=r"data.balance: expected 0, since samples of this task have no single"
    ):
        training_source(index, Task(), targets, FinetuneData(train="x", balance=0.5))
    with pytest.raises(ValueError, match=r"augment.flip_except: expected \[\], since samples of this task"):
        flippable(Task(), targets, FinetuneAugment(flip_except=["a"]))


def test_videos_of_excluded_classes_are_not_flipped(labelled):
    index, task, targets = labelled
    may_flip_R = flippable(task, targets, FinetuneAugment(flip_except=["move_left", "move_right"]))
    names = np.array(index.classes)[index.column("label")]
    assert (may_flip_R == ~np.isin(names, ["move_left", "move_right"])).all()
    assert flippable(task, targets, FinetuneAugment()) is None


def test_an_unknown_excluded_class_is_an_error(labelled):
    _, task, targets = labelled
    with pytest.raises(
        ValueError, match=r"augment.flip_except: expected classes .* got 'left'; fix: take names"
    ):
        flippable(task, targets, FinetuneAugment(flip_except=["left"]))


@pytest.mark.parametrize(
    "augment, warns",
    [
        ({}, True),
        ({"flip": False}, False),
        ({"flip_pairs": {"move_left": "move_right"}}, False),
        ({"flip_except": ["move_left", "move_right"]}, False),
    ],
)
def test_flips_of_classes_that_differ_in_left_and_right_are_reported(
    labelled, caplog, monkeypatch, augment, warns
):
    monkeypatch.setattr("kinemae.finetune.labels.sampling.log.propagate", True)
    _, task, targets = labelled
    flippable(task, targets, FinetuneAugment(**augment))
    assert ("turns move_left into move_right; fix: augment.flip=false" in caplog.text) == warns


@pytest.mark.parametrize(
    "override, message",
    [
        ("data.balance=1.5", "data.balance must lie between 0 and 1, got 1.5"),
        ("augment.flip_pairs={a: b, c: a}", "augment.flip_pairs must name each class once"),
        ("augment.flip_pairs={a: a}", "augment.flip_pairs must name each class once"),
    ],
)
def test_a_wrong_config_is_an_error(override, message):
    needed = ["encoder=x", "run_dir=r", "data.train=t", "data.validation=v", "epochs=1"]
    with pytest.raises(ValueError, match=message):
        load_config(FinetuneConfig, None, [*needed, override])


@pytest.mark.parametrize("name, value", [("flip_pairs", {"a": "b"}), ("flip_except", ["a"])])
def test_settings_of_flips_need_flips(name, value):
    with pytest.raises(ValueError, match=f"augment.{name} must be omitted with augment.flip=false"):
        FinetuneAugment(flip=False, **{name: value})
