"""Labels and classes are checked before training starts."""

import logging

import pytest

from kinemae.data_tools.command import DataError
from kinemae.data_tools.config import load_config
from kinemae.finetune.config import FinetuneConfig
from kinemae.finetune.labels.checks import check_batch, check_leaks, check_seen_classes
from kinemae.finetune.tasks.classification import Classification
from tests.label_index import label_index


def write_data(folder, labels, classes=("left", "right"), *, groups=None, contents=None):
    return label_index(folder, labels=labels, classes=classes, groups=groups, contents=contents, frames=8)


def load(tmp_path, *overrides):
    needed = [
        "run_dir=r",
        "epochs=1",
        f"data.train={tmp_path / 'train'}",
        f"data.validation={tmp_path / 'validation'}",
        "batch.global_clips=4",
        "optim.lr=1",
    ]
    return load_config(FinetuneConfig, None, [*needed, *overrides])


def check_data(config, train, validation):
    """The checks of a run with the default task."""
    task = Classification()
    task.fit(train, key=f"data.train={config.data.train}")
    task.read(train, key=f"data.train={config.data.train}")
    task.read(validation, key=f"data.validation={config.data.validation}")
    check_batch(config, train)


def test_valid_data_is_accepted_without_warnings(tmp_path, caplog):
    logging.getLogger("kinemae").propagate = True
    train = write_data(tmp_path / "train", [0, 1, 0, 1])
    validation = write_data(tmp_path / "validation", [0, 1])

    check_data(load(tmp_path), train, validation)

    assert not caplog.records


@pytest.mark.parametrize(
    ("labels", "classes", "message"),
    [
        (
            [-1, -1, -1, -1],
            (),
            "data.train=.*: expected labelled videos, got no labels; fix: shard",
        ),
        (
            [0, 1, -1, 0],
            ("left", "right"),
            r"one of the 2 classes .*, got another value in 1 of 4 videos, first key-2 \(2.mp4\)",
        ),
        ([0, 1, 2, 0], ("left", "right"), "first key-2 .* with number 2; fix: label or remove"),
        (
            [0, 1, 0],
            ("left", "right"),
            "batch.global_clips: expected at most 3, .*got 4; fix: lower it",
        ),
    ],
)
def test_unusable_training_data_is_rejected(tmp_path, labels, classes, message):
    train = write_data(tmp_path / "train", labels, classes)
    validation = write_data(tmp_path / "validation", [0, 1])

    with pytest.raises(DataError, match=message):
        check_data(load(tmp_path), train, validation)


def test_views_count_as_clips(tmp_path):
    train = write_data(tmp_path / "train", [0, 1])
    validation = write_data(tmp_path / "validation", [0, 1])

    check_data(load(tmp_path, "data.views_per_video=2"), train, validation)


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (
            ("left", "up"),
            "data.validation=the-folder: expected the 2 classes .*, got 'up', which",
        ),
        (("left",), "got none called 'right'"),
        (("right", "left"), "got the same classes in another order"),
        ((), "data.validation=the-folder: expected labelled videos, got no labels"),
    ],
)
def test_validation_data_with_other_classes_is_rejected(tmp_path, classes, message):
    validation = write_data(tmp_path / "validation", [0], classes)
    classification = Classification()
    classification.load_state({"classes": ["left", "right"]})

    with pytest.raises(DataError, match=message):
        classification.read(validation, key="data.validation=the-folder")


def test_a_class_without_training_videos_is_logged(tmp_path, caplog):
    logging.getLogger("kinemae").propagate = True
    classes = ("left", "up", "right")
    train = write_data(tmp_path / "train", [0, 1, 0, 1], classes)
    validation = write_data(tmp_path / "validation", [0, 1], classes)

    check_data(load(tmp_path), train, validation)

    assert "data.train: 1 classes have no training video, first right" in caplog.text


def shared(tmp_path, column):
    """Write three data sets; a value of the first one's sample 1 is also in the last one's sample 2."""
    values = {"train": ["a", "b", "", "b"], "validation": ["c", "", "", ""], "test": ["d", "", "b", "e"]}
    return {
        f"data.{name}=x": write_data(tmp_path / name, [0, 1, 0, 1], **{column: values[name]})
        for name in values
    }


@pytest.mark.parametrize(
    ("column", "what"), [("groups", "group 'b' of 1.mp4 and 2.mp4"), ("contents", "file of 1.mp4 and 2.mp4")]
)
def test_data_sets_that_share_a_group_or_a_file_are_rejected(tmp_path, column, what):
    kind = what.split()[0]
    message = (
        f"data.test=x: expected no {kind} of data.train=x, got 1 in both, first {what}; "
        f"fix: split the data by {kind}, or data.leaks=warn"
    )
    with pytest.raises(DataError, match=message):
        check_leaks(shared(tmp_path, column), policy="error")


def test_leaks_can_be_logged_instead(tmp_path, caplog):
    logging.getLogger("kinemae").propagate = True
    check_leaks(shared(tmp_path, "groups"), policy="warn")
    assert "data.test=x: expected no group of data.train=x, got 1 in both" in caplog.text


def test_data_sets_without_groups_and_of_equal_keys_have_no_leaks(tmp_path):
    sets = {name: write_data(tmp_path / name, [0, 1]) for name in ("train", "validation")}
    check_leaks(sets, policy="error")


def test_the_policy_of_leaks_is_checked(tmp_path):
    with pytest.raises(ValueError, match=r"data.leaks"):
        load(tmp_path, "data.leaks=ignore")


def fitted(train):
    task = Classification()
    task.fit(train, key="data.train=train")
    return task


def test_a_scored_class_without_training_samples_is_an_error(tmp_path):
    classes = ("left", "right", "up")
    train = write_data(tmp_path / "train", [0, 0, 1], classes)
    scored = write_data(tmp_path / "validation", [1, 2, 0, 2], classes)

    message = r"data.validation=v: expected classes .*got 2 samples of 1 classes .*first 'up' of 1.mp4; fix:"
    with pytest.raises(DataError, match=message):
        check_seen_classes(fitted(train), train, scored, key="data.validation=v")

    known = write_data(tmp_path / "known", [1, 0], classes)
    check_seen_classes(fitted(train), train, known, key="data.validation=v")
