"""The contract of every task in finetune/tasks."""

import json

import numpy as np
import pytest
import torch

from kinemae.data_tools.command import DataError
from kinemae.data_tools.components import Component, component_names
from kinemae.data_tools.stream.frame_sampling import ClipConfig
from kinemae.finetune.tasks.base import SamplePrediction, build_task
from tests.default_components import ARGS, default_component
from tests.label_index import label_index, rich_index

FOLDER = "kinemae.finetune.tasks"
NAMES = component_names(FOLDER)
TASKS = [
    *(default_component(FOLDER, name) for name in NAMES),
    Component(name="classification", args={"label": "verb", "loss": "focal", "class_weights": "balanced"}),
    Component(name="classification", args={"loss": "bce", "class_weights": "effective"}),
    Component(name="classification", args={"label": "second", "allow_missing": True}),
    Component(name="dense", args={"segments": "segments", "resolution": "frame"}),
    Component(name="dense", args={"segments": "segments", "multi_label": True, "score_fps": 2.5}),
    Component(name="multi_label", args={"labels": ["is_red", "is_big"], "loss": "focal"}),
    Component(name="multi_label", args={"label": "tags", "loss": "asymmetric"}),
    Component(name="regression", args={"labels": ["speed", "dx"], "loss": "l1"}),
    Component(name="regression", args={"labels": "note", "loss": "smooth_l1", "allow_missing": True}),
    Component(name="ordinal", args={"label": "grade"}),
    Component(name="retrieval", args={"label": "verb", "dimensions": 8, "margin": 0.1}),
    Component(
        name="multi_task",
        args={
            "tasks": {
                "second": {"name": "classification", "args": {"allow_missing": True}},
                "size": {"name": "ordinal", "args": {"order": ["low", "mid", "high"]}},
                "vector": {"name": "regression", "args": {"labels": ["speed", "dx"]}},
                "tags": {"name": "multi_label"},
            },
            "weights": {"size": 2.0},
        },
    ),
]
CLIP = ClipConfig(frames=4, stride=2, size=16)
SLICES = 2
TIME_T = torch.tensor([1.0, 1.2, 1.4, 1.6], dtype=torch.float64)


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    return rich_index(tmp_path_factory.mktemp("labels"))


def fitted(component, index):
    """Return the fitted task, its samples and their targets."""
    task = build_task(component)
    samples = task.view(index, CLIP, key="data.train=x")
    task.fit(samples, key="data.train=x")
    return task, samples, task.read(samples, key="data.train=x")


def clip_targets(targets, positions):
    time_BT = TIME_T.expand(len(positions), -1)
    return targets.of_clips(torch.tensor(positions), time_BT)


def needs_plain_output(task):
    if task.output not in ("clip", "sequence"):
        pytest.skip(f"the output of a {task.output} head is tested with its task")


def random_output(task, clips):
    """Return the output of a head, for any task that has one tensor per clip."""
    needs_plain_output(task)
    shape = (clips, task.outputs) if task.output == "clip" else (clips, SLICES, task.outputs)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def learned_output(task, targets):
    """Minimize the loss over the outputs themselves: what a perfect model would give."""
    clips = len(next(iter(targets.values())))
    output = random_output(task, clips).requires_grad_()
    optimizer = torch.optim.Adam([output, *task.parameters()], lr=0.2)
    for step in range(400):
        optimizer.param_groups[0]["lr"] = 0.2 * (1 - step / 400)
        optimizer.zero_grad()
        task.loss(output, targets).sum().backward()
        optimizer.step()
    return output.detach()


def score(task, output, targets, samples):
    """Score outputs of one view per sample."""
    with torch.no_grad():
        predictions = [
            SamplePrediction(
                position=position,
                key=str(position),
                values=task.combine(task.predict(output[position : position + 1]), TIME_T[None]),
            )
            for position in range(len(samples))
        ]
    return task.score(predictions, targets)


def test_the_folder_contains_the_tasks():
    own = {"classification", "multi_label", "multi_task", "ordinal", "regression", "retrieval"}
    assert own <= set(NAMES)


@pytest.mark.parametrize("component", TASKS, ids=str)
def test_a_task_restored_from_json_is_the_same(component, index):
    task, _, targets = fitted(component, index)
    copy = build_task(component)
    copy.load_state(json.loads(json.dumps(task.state())))

    assert copy.outputs == task.outputs == sum(task.output_groups)
    assert copy.state() == task.state() and (copy.metric, copy.maximize) == (task.metric, task.maximize)
    output = random_output(task, 6)
    copy.load_state_dict(task.state_dict())  # of weights that only the loss needs
    clips = clip_targets(targets, list(range(6)))
    assert torch.equal(copy.predict(output), task.predict(output))
    assert torch.equal(copy.loss(output, clips), task.loss(output, clips))


@pytest.mark.parametrize("component", TASKS, ids=str)
@pytest.mark.parametrize("state", [{}, {"classes": 3}, {"tasks": {}}])
def test_a_state_of_another_task_is_rejected(component, state):
    with pytest.raises((KeyError, TypeError, ValueError)):
        build_task(component).load_state(state)


@pytest.mark.parametrize("component", TASKS, ids=str)
def test_targets_have_a_row_per_clip(component, index):
    _, samples, targets = fitted(component, index)
    positions = [3, 3, 0, len(samples) - 1]

    clips = clip_targets(targets, positions)

    assert clips and all(len(target) == 4 for target in clips.values())
    assert all(torch.equal(t[0:1].nan_to_num(-9), t[1:2].nan_to_num(-9)) for t in clips.values())
    json.dumps([targets.of_sample(position) for position in positions], allow_nan=False)


@pytest.mark.parametrize("component", TASKS, ids=str)
def test_the_loss_of_a_clip_does_not_depend_on_its_neighbours(component, index):
    task, _, targets = fitted(component, index)
    output = random_output(task, 8)
    positions = [0, 1, 2, 3, 4, 9, 10, 11]

    together_B = task.loss(output, clip_targets(targets, positions))

    alone_B = torch.cat(
        [task.loss(output[i : i + 1], clip_targets(targets, positions[i : i + 1])) for i in range(8)]
    )
    assert together_B.shape == (8,) and torch.isfinite(together_B).all() and (together_B >= 0).all()
    torch.testing.assert_close(together_B, alone_B)


@pytest.mark.parametrize("component", TASKS, ids=str)
def test_two_processes_have_the_gradient_of_one(component, index):
    task, _, targets = fitted(component, index)
    output = random_output(task, 8).requires_grad_()
    positions = [0, 1, 2, 3, 12, 13, 14, 15]

    task.loss(output, clip_targets(targets, positions)).mean().backward()

    halves = [output.detach()[:4].requires_grad_(), output.detach()[4:].requires_grad_()]
    for half, own in zip(halves, (positions[:4], positions[4:]), strict=True):
        (task.loss(half, clip_targets(targets, own)).mean() / 2).backward()
    torch.testing.assert_close(torch.cat([half.grad for half in halves]), output.grad)


@pytest.mark.parametrize("component", TASKS, ids=str)
@pytest.mark.parametrize("scale", [0.0, 1.0, 200.0])
def test_the_gradient_is_finite(component, scale, index):
    task, _, targets = fitted(component, index)
    output = (scale * random_output(task, 6)).requires_grad_()

    task.loss(output, clip_targets(targets, list(range(6)))).sum().backward()

    assert torch.isfinite(output.grad).all()
    assert all(torch.isfinite(each.grad).all() for each in task.parameters())


@pytest.mark.parametrize("component", TASKS, ids=str)
def test_a_clip_without_a_target_has_no_loss(component, index):
    task, samples, targets = fitted(component, index)
    clips = clip_targets(targets, list(range(len(samples))))
    has_target_B = task.has_target(clips)

    loss_B = task.loss(random_output(task, len(samples)), clips)

    assert has_target_B.any() and has_target_B.shape == loss_B.shape
    assert (loss_B[~has_target_B] == 0).all()
    assert (loss_B[has_target_B] > 0).any()


@pytest.mark.parametrize("component", TASKS, ids=str)
def test_equal_views_give_the_prediction_of_one(component, index):
    task, _, _ = fitted(component, index)
    prediction = task.predict(random_output(task, 1)).detach()

    one = task.combine(prediction, TIME_T[None])
    many = task.combine(prediction.expand(3, *prediction.shape[1:]), TIME_T.expand(3, -1))

    assert prediction.dtype == torch.float64
    assert one.keys() == many.keys()
    assert all(np.allclose(one[name], many[name], atol=1e-12) for name in one)


@pytest.mark.parametrize("component", TASKS, ids=str)
def test_minimizing_the_loss_reaches_the_best_score_far_from_the_floor(component, index):
    task, samples, targets = fitted(component, index)
    output = learned_output(task, clip_targets(targets, list(range(len(samples)))))

    scores = score(task, output, targets, samples)

    json.dumps(scores, allow_nan=False)
    best, floor = 1.0 if task.maximize else 0.0, scores["floor"][task.metric]
    assert scores[task.metric] == pytest.approx(best, abs=0.05)
    assert abs(floor - best) > 0.2


@pytest.mark.parametrize("component", TASKS, ids=str)
def test_training_metrics_are_one_value_per_clip(component, index):
    task, _, targets = fitted(component, index)

    values = task.train_metrics(random_output(task, 6), clip_targets(targets, list(range(6))))

    assert all(value.shape == (6,) and torch.isfinite(value).all() for value in values.values())


@pytest.mark.parametrize("component", TASKS, ids=str)
def test_flipping_a_target_twice_restores_it(component, index):
    task, _, targets = fitted(component, index)
    clips = clip_targets(targets, list(range(6)))
    flip = task.target_flip([])
    flipped_B = torch.tensor([True, False] * 3)

    twice = flip(flip(clips, flipped_B), flipped_B)

    assert all(torch.equal(twice[name].nan_to_num(-9), clips[name].nan_to_num(-9)) for name in clips)


@pytest.mark.parametrize("component", TASKS, ids=str)
def test_a_missing_column_is_an_error_that_names_it(component, tmp_path):
    bare = label_index(tmp_path / "bare", labels=[-1] * 4, classes=())

    with pytest.raises(DataError, match="fix: "):
        fitted(component, bare)


def test_every_task_with_required_arguments_has_an_example():
    for name in NAMES:
        build_task(default_component(FOLDER, name))
    assert all(key.rpartition(".")[2] in NAMES for key in ARGS if key.startswith(f"{FOLDER}."))
