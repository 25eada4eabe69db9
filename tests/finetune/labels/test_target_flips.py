"""Targets of flipped clips."""

import pytest
import torch

from kinemae.data_tools.components import Component
from kinemae.data_tools.index import open_index
from kinemae.data_tools.stream.augment import AugmentConfig
from kinemae.data_tools.stream.frame_sampling import ClipConfig
from kinemae.finetune.labels.clips import LabelledClips
from kinemae.finetune.labels.target_flips import TargetFlip, swapped_classes
from kinemae.finetune.tasks.base import build_task
from tests.label_index import rich_index

FLIPPED_B = torch.tensor([True, False, True])


def flip_of(name, args, index, pairs=()):
    task = build_task(Component(name=name, args=args))
    task.fit(index, key="data.train=x")
    return task, task.target_flip(list(pairs))


def targets_of(task, index, positions):
    time_BT = torch.zeros(len(positions), 4, dtype=torch.float64)
    return task.read(index, key="data.train=x").of_clips(torch.tensor(positions), time_BT)


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    return rich_index(tmp_path_factory.mktemp("labels"))


def test_classes_of_pairs_swap_and_others_stay():
    assert swapped_classes(["a", "left", "right", "b"], [("left", "right")]) == (0, 2, 1, 3)
    assert swapped_classes(["a", "b"], []) == (0, 1)


def test_an_unknown_class_is_rejected_with_known_ones():
    with pytest.raises(
        ValueError, match=r"flip_pairs: expected pairs of classes, got 'lefft'; fix: .*\(left, ri"
    ):
        swapped_classes(["left", "right"], [("lefft", "right")])


def test_class_numbers_swap_where_a_clip_is_flipped_and_missing_ones_stay():
    flip = TargetFlip(renumber={"label": (1, 0, 2)})

    flipped = flip({"label": torch.tensor([0, 0, -1]), "x": torch.arange(3)}, FLIPPED_B)

    assert flipped["label"].tolist() == [1, 0, -1] and flipped["x"].tolist() == [0, 1, 2]


def test_class_numbers_per_slice_swap():
    flip = TargetFlip(renumber={"label": (1, 0)})

    assert flip({"label": torch.tensor([[0, 1], [0, 1]])}, FLIPPED_B[:2])["label"].tolist() == [
        [1, 0],
        [0, 1],
    ]


def test_the_targets_of_unflipped_clips_are_not_copied():
    targets = {"label": torch.tensor([0, 1])}

    assert TargetFlip(renumber={"label": (1, 0)})(targets, torch.zeros(2, dtype=torch.bool)) == targets


def test_labels_of_a_multi_label_task_swap(index):
    task, flip = flip_of("multi_label", {"label": "tags"}, index, [("red", "blue")])
    assert task.classes == ("blue", "red", "round")
    before = targets_of(task, index, [1, 1, 4])["labels"]

    after = flip({"labels": before}, FLIPPED_B)["labels"]

    assert before.tolist() == [[0, 1, 1], [0, 1, 1], [1, 0, 1]]
    assert after.tolist() == [[1, 0, 1], [0, 1, 1], [0, 1, 1]]


def test_a_horizontal_number_changes_its_sign(index):
    task, flip = flip_of("regression", {"labels": ["speed", "dx"], "flip_negates": "dx"}, index)
    before = targets_of(task, index, [1, 2, 4])["value"]

    after = flip({"value": before}, FLIPPED_B)["value"]

    assert (after[:, 0] == before[:, 0]).all()
    assert (after[:, 1] == before[:, 1] * torch.tensor([-1, 1, -1])).all()


def test_pairs_belong_to_the_column_that_has_them(index):
    args = {
        "tasks": {
            "label": {"name": "classification"},
            "dx": {"name": "regression", "args": {"flip_negates": "dx"}},
            "verb": {"name": "classification"},
        }
    }
    task, flip = flip_of("multi_task", args, index, [("left", "right")])
    before = targets_of(task, index, [0, 1, 2])

    after = flip(before, FLIPPED_B)

    assert before["label/label"].tolist() == [0, 1, 2] and after["label/label"].tolist() == [1, 1, 2]
    assert (after["dx/value"][:, 0] == before["dx/value"][:, 0] * torch.tensor([-1, 1, -1])).all()
    assert torch.equal(after["verb/label"], before["verb/label"])


@pytest.mark.parametrize(
    ("name", "args", "pair", "message"),
    [
        ("classification", {"label": "verb"}, ("open", "shut"), "expected pairs of classes, got 'shut'"),
        ("ordinal", {"label": "grade"}, ("0", "9"), "expected pairs of classes, got '9'"),
        ("regression", {"labels": "dx"}, ("left", "right"), "expected no pairs, since this task has no clas"),
        (
            "multi_task",
            {"labels": ["verb", "dx"]},
            ("open", "left"),
            "expected two classes of one column of verb",
        ),
    ],
)
def test_pairs_that_a_task_does_not_know_are_rejected(index, name, args, pair, message):
    with pytest.raises(ValueError, match=f"augment.flip_pairs: {message}.*fix: "):
        flip_of(name, args, index, [pair])


def test_flipped_clips_of_a_run_have_the_swapped_label(synth_shards):
    index = open_index(synth_shards / "train")
    task = build_task(Component(name="classification"))
    task.fit(index, key="data.train=x")
    pair = index.classes[:2]
    clips = LabelledClips(
        index,
        targets=task.read(index, key="data.train=x"),
        flip=task.target_flip([pair]),
        clip=ClipConfig(frames=2, stride=1, size=16),
        augment=AugmentConfig(),
        seed=0,
    )

    batch = clips.batch(range(16))

    swapped = {0: 1, 1: 0}
    expected = [
        swapped.get(label, label) if flipped else label
        for label, flipped in zip(batch.label_B.tolist(), batch.flipped_B.tolist(), strict=True)
    ]
    assert batch.targets["label"].tolist() == expected != batch.label_B.tolist()
