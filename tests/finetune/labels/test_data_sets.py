"""Held-out parts of the training data in a fine-tuning run."""

import json

import numpy as np
import pytest

from kinemae.data_tools.config import load_config
from kinemae.data_tools.stream.frame_sampling import ClipConfig
from kinemae.data_tools.stream.mixture import locate_sample
from kinemae.finetune.config import FinetuneConfig
from kinemae.finetune.labels.data_sets import open_data_sets, open_scored, validation_samples
from kinemae.finetune.labels.sampling import training_source
from kinemae.finetune.tasks.classification import Classification

CLIP = ClipConfig(frames=4, stride=2, size=16)


@pytest.fixture
def config(common):
    path, *overrides = common
    return lambda *more: load_config(FinetuneConfig, path, [*map(str, overrides), "run_dir=r", *more])


def keys(index):
    return index.arrow_column("key").to_pylist()


def test_the_held_out_part_is_disjoint_balanced_and_a_function_of_the_seed(config):
    parts = []
    for seed in (0, 0, 1):
        data = open_data_sets(
            config("validate.fraction=0.25", f"seed={seed}"), Classification(label_smoothing=0.1), CLIP
        )
        train, held_out = keys(data.train.index), keys(data.selection.index)
        assert sorted(train + held_out) == sorted(keys(data.whole.index))
        assert np.bincount(data.selection.index.column("label")).tolist() == [1] * 8
        assert data.scored.key.startswith("data.validation=")
        parts.append(held_out)

    assert parts[0] == parts[1] != parts[2]


def test_a_trained_task_finds_the_same_held_out_part(config):
    run = config("data.validation=null")
    task = Classification()
    data = open_data_sets(run, task, CLIP)
    again = Classification()
    again.load_state(json.loads(json.dumps(task.state())))

    scored = open_scored(run, again, CLIP)

    assert keys(scored.index) == keys(data.scored.index) == keys(data.selection.index)
    assert scored.key == data.selection.key and scored.key.startswith("validate.fraction=0.2 of data.train=")


def test_some_validated_videos_are_drawn_by_the_seed(config):
    data = open_data_sets(config(), Classification(), CLIP)

    few = validation_samples(config("validate.videos=5"), data.selection.index)

    assert few == sorted(set(few)) and len(few) == 5
    assert few == validation_samples(config("validate.videos=5"), data.selection.index)
    assert few != validation_samples(config("validate.videos=5", "seed=1"), data.selection.index)
    assert validation_samples(config(), data.selection.index) == list(range(24))


def test_each_set_has_its_own_condition(config):
    pair = "label in ['move_left', 'move_right']"
    run = config(f"data.where={pair}", f"data.validation_where={pair} and key != ''")
    data = open_data_sets(run, Classification(), CLIP)
    for index in (data.whole.index, data.scored.index):
        assert sorted({index.classes[label] for label in index.column("label")}) == [
            "move_left",
            "move_right",
        ]
    with pytest.raises(ValueError, match=r"data.test_where: expected a condition"):
        config("data.test_where=label >", "data.test=x")
    with pytest.raises(ValueError, match=r"data.test must name a folder if data.test_where is set"):
        config("data.test_where=label is None")
    with pytest.raises(ValueError, match=r"data.balance must be 0 if data.weight is set, got 1\.0"):
        config("data.weight=frames", "data.balance=1")


def test_a_weight_belongs_to_the_samples_that_are_trained_on(config):
    where = ("data.where=label < 3", "data.validation_where=label < 3")
    run = config("data.weight=frames", *where, "validate.fraction=0.25")
    task = Classification()
    data = open_data_sets(run, task, CLIP)
    targets = task.read(data.train.index, key="x")
    source = training_source(data.train.index, task, targets, run.data)
    shown = [locate_sample(source, seed=1, position=place) for place in range(len(source))]
    assert sorted(one.key for one in shown) == sorted(keys(data.train.index))  # all have equal weights
    assert all(data.train.index.sample(one.position).key == one.key for one in shown)
