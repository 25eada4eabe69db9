"""Losses, scores and errors of each task about clips."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from kinemae.data_tools.command import DataError
from kinemae.data_tools.components import Component
from kinemae.finetune.tasks.base import SamplePrediction, build_task
from kinemae.finetune.tasks.multi_task import skill
from kinemae.finetune.tasks.ordinal import median_classes
from tests.label_index import label_index, rich_index

TIME_VT = torch.zeros(1, 4, dtype=torch.float64)


def build(name, **args):
    return build_task(Component(name=name, args=args))


def fitted(index, name, **args):
    task = build(name, **args)
    task.fit(index, key="data.train=x")
    return task


def with_column(folder, values, name="value", **settings):
    return label_index(folder, labels=[0] * len(values), extra={name: values}, **settings)


def targets_of(task, index):
    positions = torch.arange(len(index))
    return task.read(index, key="k").of_clips(positions, TIME_VT.expand(len(index), -1))


def score(task, index, output):
    predictions = [
        SamplePrediction(
            position=position, key=str(position), values=task.combine(task.predict(row[None]), TIME_VT)
        )
        for position, row in enumerate(output)
    ]
    return task.score(predictions, task.read(index, key="k"))


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    return rich_index(tmp_path_factory.mktemp("labels"))


def test_cross_entropy_weights_each_clip_by_its_class(tmp_path):
    index = with_column(tmp_path, ["a", "a", "a", "b"])
    task = fitted(index, "classification", label="value", class_weights="balanced")
    output = torch.randn(4, 2)

    loss_B = task.loss(output, targets_of(task, index))

    plain_B = functional.cross_entropy(output, torch.tensor([0, 0, 0, 1]), reduction="none")
    assert torch.allclose(loss_B, plain_B * torch.tensor([4 / 6, 4 / 6, 4 / 6, 2.0]))


def test_one_vs_rest_probabilities_sum_to_1(index):
    task = fitted(index, "classification", loss="bce")

    assert torch.allclose(task.predict(torch.randn(5, 3)).sum(dim=1), torch.ones(5, dtype=torch.float64))


def test_the_floor_of_a_classification_is_its_most_frequent_class(tmp_path):
    index = with_column(tmp_path, ["a", "a", "a", "b", None])
    task = fitted(index, "classification", label="value", allow_missing=True)

    scores = score(task, index, torch.tensor([[1.0, 0.0]] * 5))

    assert scores["top1"] == scores["floor"]["top1"] == 0.75 and scores["floor"]["top5"] == 1.0


def test_unknown_classes_of_a_multi_label_sample_have_no_loss(tmp_path):
    index = label_index(tmp_path, labels=[0] * 3, extra={"x": [1, None, 0], "y": [1, 0, None]})
    task = fitted(index, "multi_label", labels=["x", "y"], allow_missing=True)
    output = torch.randn(3, 2)

    loss_B = task.loss(output, targets_of(task, index))

    known = [([0, 1], [1.0, 1.0]), ([1], [0.0]), ([0], [0.0])]
    expected = [
        functional.binary_cross_entropy_with_logits(output[row, columns], torch.tensor(target))
        for row, (columns, target) in enumerate(known)
    ]
    assert torch.allclose(loss_B, torch.stack(expected))


def test_texts_of_several_classes_are_split_and_trimmed(tmp_path):
    index = with_column(tmp_path, ["red, round", "", "round,"])
    task = fitted(index, "multi_label", label="value", separator=",")

    assert task.classes == ("red", "round")
    assert targets_of(task, index)["labels"].tolist() == [[1, 1], [0, 0], [0, 1]]


def test_regression_predicts_in_the_unit_of_the_column(tmp_path):
    index = with_column(tmp_path, [10.0, 20.0, 30.0])
    task = fitted(index, "regression", labels="value")
    deviation = np.std([10.0, 20.0, 30.0])

    scores = score(task, index, torch.tensor([[0.0]] * 3))

    assert task.predict(torch.tensor([[0.0], [1.0]]))[:, 0].tolist() == pytest.approx([20.0, 20 + deviation])
    assert scores["mae"] == scores["floor"]["mae"] == pytest.approx(20 / 3)
    assert scores["standardized_mae"] == pytest.approx(20 / 3 / deviation)
    assert score(task, index, torch.tensor([[-1.0], [0.0], [1.0]]) * 10 / deviation)["r2"] == pytest.approx(
        1.0
    )


def test_the_loss_of_a_vector_is_the_mean_over_its_known_numbers(tmp_path):
    index = label_index(tmp_path, labels=[0] * 3, extra={"x": [0.0, 2.0, None], "y": [1.0, None, 3.0]})
    task = fitted(index, "regression", labels=["x", "y"], allow_missing=True)
    output = torch.tensor([[0.0, 0.0]] * 3)

    # Standardized: x is -1, 1, none; y is -1, none, 1.
    assert task.loss(output, targets_of(task, index)).tolist() == pytest.approx([1.0, 1.0, 1.0])
    one = torch.tensor([[-1.0, 0.0]] * 3)
    assert task.loss(one, targets_of(task, index)).tolist() == pytest.approx([0.5, 4.0, 1.0])


def test_an_output_of_0_predicts_the_class_frequencies_of_an_ordinal_training_set(tmp_path):
    values = ["low"] * 30 + ["mid"] * 50 + ["high"] * 20
    index = with_column(tmp_path, values)
    task = fitted(index, "ordinal", label="value", order=["low", "mid", "high"])

    prediction = task.combine(task.predict(torch.zeros(1, 2)), TIME_VT)["prediction"]

    assert np.allclose(prediction, [0.3, 0.5, 0.2], atol=0.01) and prediction.sum() == pytest.approx(1.0)


def test_ordinal_probabilities_are_in_order_for_any_output(index):
    task = fitted(index, "ordinal", label="grade")

    above_VX = task.predict(20 * torch.randn(100, 3))

    assert (above_VX.diff(dim=1) <= 0).all()


def test_the_ordinal_loss_grows_with_the_distance(index):
    task = fitted(index, "ordinal", label="grade")
    output = torch.tensor([[-30.0, 0.0, 0.0]]).expand(4, -1)  # surely class 0

    loss_B = task.loss(output, {"label": torch.arange(4)})

    assert (loss_B.diff() > 5).all()


def test_the_median_class_is_the_first_that_reaches_half():
    assert median_classes(np.array([[0.4, 0.2, 0.4], [0.5, 0.5, 0.0], [0.1, 0.2, 0.7]])).tolist() == [1, 0, 2]


def test_ordinal_classes_of_the_data_set_get_the_given_order(tmp_path):
    index = label_index(tmp_path, labels=[0, 1, 2, -1], classes=("high", "low", "mid"))
    task = fitted(index, "ordinal", label="label", order=["low", "mid", "high"], allow_missing=True)

    assert targets_of(task, index)["label"].tolist() == [2, 0, 1, -1]


def test_the_retrieval_loss_is_the_cross_entropy_of_scaled_cosines(index):
    task = fitted(index, "retrieval", dimensions=8, temperature=0.1, margin=0.2)
    output, label_B = torch.randn(6, 8), torch.arange(6) % 3

    loss_B = task.loss(output, {"label": label_B})

    cosine_BY = functional.cosine_similarity(output[:, None], task.proxies.direction_YD[None], dim=2)
    logits_BY = (cosine_BY - 0.2 * functional.one_hot(label_B, 3)) / 0.1
    assert torch.allclose(loss_B, functional.cross_entropy(logits_BY, label_B, reduction="none"), atol=1e-5)


def test_retrieval_can_be_evaluated_on_other_classes_and_without_the_own_group(index, tmp_path):
    train = label_index(tmp_path / "train", labels=[0, 1], classes=("x", "y"))
    task = build("retrieval", exclude_group=True, dimensions=2)
    task.fit(train, key="data.train=x")
    other = label_index(
        tmp_path / "other", labels=[0, 0, 1, 1], classes=("v", "w"), groups=["g", "g", "h", "i"]
    )
    output = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]])

    scores = score(task, other, output)

    assert targets_of(task, other)["label"].tolist() == [-1] * 4
    assert task.has_target(targets_of(task, other)).tolist() == [False] * 4
    assert (scores["r_at_1"], scores["queries"], scores["queries_without_match"]) == (1.0, 2, 2)


def test_the_multi_task_loss_is_the_weighted_mean_over_the_columns_of_a_clip(index):
    args = {"tasks": {"verb": {"name": "classification"}, "note": {"name": "regression"}}}
    args["tasks"]["note"]["args"] = {"allow_missing": True}
    task = fitted(index, "multi_task", weights={"note": 3.0}, **args)
    targets, output = targets_of(task, index), torch.randn(len(index), 3)

    loss_B = task.loss(output, targets)

    verb_B = functional.cross_entropy(output[:, :2], targets["verb/label"], reduction="none")
    note_B = task.tasks["column_note"].loss(output[:, 2:], {"value": targets["note/value"]})
    has_note_B = ~targets["note/value"][:, 0].isnan()
    expected_B = torch.where(has_note_B, (verb_B + 3 * note_B) / 4, verb_B)
    assert 0 < has_note_B.sum() < len(index) and torch.allclose(loss_B, expected_B, atol=1e-6)


def test_joint_accuracy_needs_all_columns_right(tmp_path):
    index = label_index(tmp_path, labels=[0] * 4, extra={"a": ["x", "y", "x", "y"], "b": [0, 1, 1, None]})
    task = fitted(index, "multi_task", labels=["a", "b"])
    # a is predicted as x, y, y, y; b as 0, 1, 1, 1.
    output = torch.tensor([[1.0, 0, 1, 0], [0, 1, 0, 1], [0, 1, 0, 1], [0, 1, 0, 1]])

    scores = score(task, index, output)

    assert scores["joint_accuracy"] == pytest.approx(2 / 3)
    assert scores["mean_top1"] == pytest.approx((0.75 + 1.0) / 2)
    assert scores["columns"]["b"]["samples"] == 3
    assert (task.metric, task.maximize) == ("mean_top1", True)


def test_columns_may_have_names_of_attributes_of_modules(tmp_path):
    extra = {"type": ["x", "y", "x", "y"], "keys": [0.5, 1.5, 2.5, 3.5]}
    index = label_index(tmp_path, labels=[0] * 4, extra=extra)
    task = fitted(index, "multi_task", labels=["type", "keys"])

    scores = score(task, index, torch.randn(4, task.outputs))

    assert list(scores["columns"]) == ["type", "keys"]


def test_columns_choose_their_task_by_their_type(index):
    task = fitted(index, "multi_task", labels=["verb", "grade", "speed", "label"])

    names = [component.name for component in task.components.values()]
    assert names == ["classification", "classification", "regression", "classification"]
    assert (task.metric, task.output_groups) == ("mean_skill", (2, 4, 1, 3))


def test_skill_is_0_at_the_floor_and_1_at_the_best():
    accuracy, error = build("classification"), build("regression", labels="x")

    assert skill(accuracy, {"top1": 0.75, "floor": {"top1": 0.5}}) == 0.5
    assert skill(accuracy, {"top1": 1.0, "floor": {"top1": 1.0}}) == 0.0
    assert skill(error, {"standardized_mae": 0.2, "floor": {"standardized_mae": 0.8}}) == pytest.approx(0.75)


@pytest.mark.parametrize(
    ("name", "args", "values", "message"),
    [
        ("classification", {"label": "other"}, ["a", "b"], "expected a column other, got none; fix: choose"),
        (
            "classification",
            {"label": "value"},
            [0.5, 1.5],
            "for classes, got numbers such as 0.5; fix: .*regr",
        ),
        ("classification", {"label": "value"}, ["a", None], "first key-1 .1.mp4. with no label; fix"),
        (
            "multi_label",
            {"label": "value"},
            [1, 0],
            "expected text in the column value, got numbers such as 1",
        ),
        ("multi_label", {"label": "value"}, ["", ""], "expected classes in the column value, got none; fix"),
        (
            "multi_label",
            {"label": "value"},
            ["a", None],
            "a text in the column value, .*key-1.* with none; fix",
        ),
        ("multi_label", {"labels": ["value"]}, [0, 2], "0 or 1 in the column value, got 2 in key-1 .*; fix"),
        (
            "multi_label",
            {"labels": ["value"]},
            [0, 0],
            "a video of every class, got none of value; fix: remove",
        ),
        (
            "regression",
            {"labels": "value"},
            ["a", "b"],
            "numbers in the column value, got text such as 'a'; fix",
        ),
        (
            "regression",
            {"labels": "value"},
            [1.0, 1.0],
            "different numbers .* value, got 1 in all videos; fix",
        ),
        ("regression", {"labels": "value"}, [1.0, None], "a number in the column value, .* with nan; fix"),
        ("regression", {"labels": "value"}, [1.0, float("nan")], "a number in the column value, .* with nan"),
        ("regression", {"labels": "value"}, [1.0, float("inf")], "a number in the column value, .* with inf"),
        (
            "regression",
            {"labels": "label"},
            [1.0, 2.0],
            "expected a column label, got none; fix: choose one of",
        ),
        (
            "ordinal",
            {"label": "value"},
            ["low", "high"],
            "integers in .* value, or an order, got 'high'; fix",
        ),
        ("ordinal", {"label": "value", "order": ["low", "mid"]}, ["low", "high"], "got 'high'; fix: add it"),
        (
            "classification",
            {"label": "value"},
            ["a", "a"],
            "at least two classes in .* value, got 'a' for all",
        ),
        ("ordinal", {"label": "value"}, [3, 3], "at least two classes in the column value, got 3; fix"),
        ("retrieval", {"label": "value"}, ["a", "a"], "at least two classes in the column value, got a; fix"),
        (
            "multi_task",
            {"labels": ["value", "other"]},
            ["a", "b"],
            "a column other, got none; fix: choose one of",
        ),
    ],
)
def test_unusable_labels_are_rejected_with_a_fix(tmp_path, name, args, values, message):
    index = with_column(tmp_path, values)

    with pytest.raises(DataError, match=f"data.train=x: .*{message}"):
        fitted(index, name, **args)


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("classification", {"label": "second", "allow_missing": True}),
        ("regression", {"labels": "note", "allow_missing": True}),
        ("multi_task", {"labels": ["second"]}),
    ],
)
def test_a_column_without_any_label_is_rejected(index, name, args):
    empty = index.view([0, 12])  # neither has a note or a second label
    task = fitted(index, name, **args)

    with pytest.raises(DataError, match=r"k: expected (labels|numbers) in .*, got none; fix: choose"):
        task.read(empty, key="k")
    with pytest.raises(DataError, match=r"data.train=x: expected .* column .*, got none; fix: choose"):
        fitted(empty, name, **args)


@pytest.mark.parametrize(
    ("name", "args", "train", "validation", "message"),
    [
        ("classification", {"label": "value"}, ["a", "b"], ["a", "c"], "one of the 2 classes .* with c; fix"),
        (
            "multi_label",
            {"label": "value"},
            ["a", "b"],
            ["a", "b;c"],
            "the 2 classes .*got 'c' in key-1 .*; fix",
        ),
        ("multi_label", {"label": "value"}, ["a", "b"], ["", ""], "a video of any class, got none; fix"),
        ("ordinal", {"label": "value"}, [1, 2], [1, 3], "one of the 2 classes .* with 3; fix"),
        (
            "retrieval",
            {"label": "value"},
            ["a", "b"],
            ["a", "b"],
            "two videos of a class .*, got one of each",
        ),
        ("multi_task", {"labels": ["value"]}, ["a", "b"], ["a", "c"], "one of the 2 classes .* with c; fix"),
        ("multi_task", {"labels": ["value"]}, ["a", "b"], [1, 2], "one of the 2 classes .* with 1; fix"),
    ],
)
def test_labels_that_training_never_saw_are_rejected(tmp_path, name, args, train, validation, message):
    task = fitted(with_column(tmp_path / "train", train), name, **args)
    other = with_column(tmp_path / "validation", validation)

    with pytest.raises(DataError, match=f"data.validation=y: .*{message}"):
        task.read(other, key="data.validation=y")


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        (
            "classification",
            {"loss": "hinge"},
            "task.args.loss must be one of cross_entropy, focal, bce, got 'hinge'",
        ),
        (
            "classification",
            {"class_weights": "sqrt"},
            "class_weights must be one of none, balanced, effective",
        ),
        ("classification", {"gamma": 0.5}, "task.args.gamma must be 0, or 1 or more, got 0.5"),
        ("classification", {"beta": 1.0}, "task.args.beta must lie strictly between 0 and 1"),
        (
            "classification",
            {"labels": ["a"]},
            "classification has no argument 'labels'; did you mean 'label'",
        ),
        ("multi_label", {}, r"task.args must have either label=COLUMN or labels=\[COLUMN, ...\]"),
        ("multi_label", {"label": "a", "labels": ["b"]}, "task.args must have either label"),
        ("multi_label", {"labels": []}, "task.args must have either label"),
        ("multi_label", {"label": "a", "margin": 1.0}, r"task.args.margin must lie in \[0, 1\)"),
        ("multi_label", {"label": "a", "threshold": 0.0}, "task.args.threshold must lie strictly"),
        ("multi_label", {"label": "a", "separator": ""}, "task.args.separator must be a text"),
        ("regression", {}, "regression needs labels; set task.args.labels"),
        ("regression", {"labels": ["x", "x"]}, "task.args.labels must be a column or a list of different"),
        ("regression", {"labels": "x", "loss": "huber"}, "task.args.loss must be one of mse, l1, smooth_l1"),
        ("regression", {"labels": "x", "flip_negates": "y"}, "flip_negates must name columns of labels="),
        (
            "ordinal",
            {"label": "x", "order": ["a"]},
            "task.args.order must be a list of at least two different",
        ),
        ("ordinal", {"label": "x", "order": ["a", "a"]}, "task.args.order must be a list of at least two"),
        ("retrieval", {"dimensions": 1}, "task.args.dimensions must be at least 2"),
        ("retrieval", {"temperature": 0.0}, "task.args.temperature must be above 0"),
        ("retrieval", {"margin": -1.0}, "task.args.margin must be 0 or more"),
        ("multi_task", {}, r"task.args must have labels=\[COLUMN, ...\] or tasks="),
        ("multi_task", {"labels": ["a", "a"]}, "task.args must have labels="),
        (
            "multi_task",
            {"labels": ["a"], "weights": {"b": 1.0}},
            "task.args.weights must name some of a, got 'b'",
        ),
        ("multi_task", {"labels": ["a"], "weights": {"a": 0}}, "task.args.weights.a must be above 0"),
        ("multi_task", {"labels": ["a"], "weights": {"a": True}}, "task.args.weights.a must be above 0"),
        ("multi_task", {"labels": ["a"], "weights": [1.0]}, "task.args.weights must be a mapping of names"),
        ("multi_task", {"tasks": {"a": "regression"}}, "task.args.tasks.a must have the form {name: TASK"),
        ("multi_task", {"tasks": {"a": {"name": "regresion"}}}, "tasks.a: .*did you mean 'regression'"),
        ("multi_task", {"tasks": {"a": {"name": "dense", "args": {"segments": "s"}}}}, "one output per clip"),
        ("multi_task", {"labels": ["a.b"]}, "task.args must have names without a dot or a slash"),
    ],
)
def test_an_invalid_task_is_rejected_with_a_fix(name, args, message):
    with pytest.raises(ValueError, match=message):
        build(name, **args)


def test_scoring_readable_videos_without_labels_is_an_error(index):
    for name, args in (
        ("classification", {"label": "second", "allow_missing": True}),
        ("regression", {"labels": "note", "allow_missing": True}),
    ):
        task = fitted(index, name, **args)
        prediction = task.combine(task.predict(torch.zeros(1, task.outputs)), TIME_VT)
        only = [SamplePrediction(position=0, key="0", values=prediction)]  # position 0 has no label

        with pytest.raises(DataError, match="for a readable video, got none; fix: label some"):
            task.score(only, task.read(index, key="k"))
