"""Multi-task: several label columns at once, each with its own task, on one encoder and head."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kinemae.data_tools.command import DataError
from kinemae.data_tools.components import Component, accepts_argument
from kinemae.data_tools.config import require
from kinemae.data_tools.index import ShardIndex
from kinemae.finetune.labels.columns import column_kind
from kinemae.finetune.labels.target_flips import TargetFlip
from kinemae.finetune.tasks.base import FOLDER, SamplePrediction, Targets, Task, build_task


class MultiTask(Task):
    """A task per label column. The loss of a clip is the weighted mean over the columns that it has.

    Give either `labels` or `tasks`. Samples may lack labels in some columns, for example of one of several
    annotators; with `tasks`, this needs `allow_missing` in the arguments of the column's task.

    Args:
        labels: columns; one of text or integers is a classification, one of numbers with fractions a
            regression.
        tasks: names to tasks, for example `{speed: {name: regression, args: {labels: speed_px}}}`. Without
            `label` or `labels` in `args`, the name is the column.
        weights: names to weights in the loss; 1 for the others.
    """

    def __init__(
        self,
        *,
        labels: list[str] | None = None,
        tasks: dict[str, Any] | None = None,
        weights: dict[str, float] | None = None,
    ):
        super().__init__()
        given = labels if tasks is None else tasks
        is_one = (labels is None) != (tasks is None) and bool(given)
        is_list = isinstance(given, list) and all(isinstance(name, str) for name in given)
        is_valid = (
            is_one and (is_list or isinstance(given, dict)) and len(set(given or ())) == len(given or ())
        )
        both = {"labels": labels, "tasks": tasks}
        require(is_valid, "task.args", "have labels=[COLUMN, ...] or tasks={COLUMN: {name: ...}}", both)
        self.names = [str(name) for name in given or ()]
        bad = next((name for name in self.names if not name or "." in name or "/" in name), None)
        require(bad is None, "task.args", "have names without a dot or a slash", bad)
        self.tasks = nn.ModuleDict()
        self.components: dict[str, Component] = {}
        if tasks is not None:
            self._build({name: _component(name, settings) for name, settings in tasks.items()})
        self.weights = dict.fromkeys(self.names, 1.0)
        is_mapping = isinstance(weights, dict | None)
        require(is_mapping, "task.args.weights", "be a mapping of names to weights", weights)
        for name, weight in (weights or {}).items():
            require(name in self.weights, "task.args.weights", f"name some of {', '.join(self.names)}", name)
            is_number = isinstance(weight, int | float) and not isinstance(weight, bool) and weight > 0
            require(is_number, f"task.args.weights.{name}", "be above 0", weight)
            self.weights[name] = float(weight)

    def fit(self, train: ShardIndex, *, key: str) -> None:
        if not self.components:
            self._build({name: _task_of_column(train, name, key=key) for name in self.names})
        for _, task in self._items():
            task.fit(train, key=key)
        self._choose_metric()

    def state(self) -> dict[str, Any]:
        return {
            "tasks": {
                name: {"name": self.components[name].name, "args": self.components[name].args}
                | {"state": task.state()}
                for name, task in self._items()
            }
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        parts = state["tasks"]
        if list(parts) != self.names:
            raise ValueError(f"expected the tasks {self.names}, got {list(parts)}")
        self._build(
            {name: Component(name=part["name"], args=dict(part["args"])) for name, part in parts.items()}
        )
        for name, task in self._items():
            task.load_state(parts[name]["state"])
        self._choose_metric()

    @property
    def outputs(self) -> int:
        return sum(self.output_groups)

    @property
    def output_groups(self) -> tuple[int, ...]:
        return tuple(task.outputs for _, task in self._items())

    def read(self, index: ShardIndex, *, key: str) -> "JoinedTargets":
        return JoinedTargets({name: task.read(index, key=key) for name, task in self._items()})

    def loss(self, output: Tensor, targets: Mapping[str, Tensor]) -> Tensor:
        total_B, weight_B = torch.zeros_like(output[:, 0]), torch.zeros_like(output[:, 0])
        for name, task, part in self._split(output):
            own = _own(name, targets)
            has_target_B = task.has_target(own)
            # A loss of 0 for a clip without a target is the contract of each task.
            total_B = total_B + self.weights[name] * task.loss(part, own)
            weight_B = weight_B + self.weights[name] * has_target_B
        return total_B / torch.where(weight_B > 0, weight_B, 1.0)

    def has_target(self, targets: Mapping[str, Tensor]) -> Tensor:
        has = [task.has_target(_own(name, targets)) for name, task in self._items()]
        return torch.stack(has).any(dim=0)

    def target_flip(self, pairs: Sequence[Sequence[str]]) -> TargetFlip:
        known, flips = set(), []
        for name, task in self._items():
            own = [pair for pair in pairs if _has_classes(task, pair)]
            known |= {tuple(pair) for pair in own}
            flips.append((name, task.target_flip(own)))
        unknown = [pair for pair in pairs if tuple(pair) not in known]
        if unknown:
            raise ValueError(
                f"augment.flip_pairs: expected two classes of one column of {', '.join(self.names)}, got "
                f"{list(unknown[0])}; fix: take class names of the training data"
            )
        return TargetFlip(
            renumber={f"{name}/{key}": each for name, flip in flips for key, each in flip.renumber.items()},
            permute={f"{name}/{key}": each for name, flip in flips for key, each in flip.permute.items()},
            negate={f"{name}/{key}": each for name, flip in flips for key, each in flip.negate.items()},
        )

    def train_metrics(self, output: Tensor, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {
            f"{metric}_{name}": value_B
            for name, task, part in self._split(output)
            for metric, value_B in task.train_metrics(part, _own(name, targets)).items()
        }

    def predict(self, output: Tensor) -> Tensor:
        """Return the predictions of all tasks, one after another; see `Task.predict`."""
        return torch.cat([task.predict(part) for _, task, part in self._split(output)], dim=1)

    def combine(self, prediction_V: Tensor, time_VT: Tensor) -> dict[str, np.ndarray]:
        """Return "NAME/prediction" of each task."""
        return {
            f"{name}/{key}": value
            for name, task, part in self._split(prediction_V)
            for key, value in task.combine(part, time_VT).items()
        }

    def score(self, predictions: Sequence[SamplePrediction], targets: Targets) -> dict[str, Any]:
        assert isinstance(targets, JoinedTargets)
        parts = {}
        for name, task in self._items():
            own = [replace(each, values=_own(name, each.values or {})) for each in predictions]
            try:
                parts[name] = task.score(own, targets.parts[name])
            except DataError as error:
                raise DataError(f"column {name}: {error}") from error
        metrics = {name: task.metric for name, task in self._items()}
        scores: dict[str, Any] = {
            "mean_skill": _mean(skill(task, parts[name]) for name, task in self._items())
        }
        floor = {"mean_skill": 0.0}
        if len(set(metrics.values())) == 1:
            scores[self.metric] = _mean(part[metrics[name]] for name, part in parts.items())
            floor[self.metric] = _mean(part["floor"][metrics[name]] for name, part in parts.items())
        is_right = [
            _correct(predictions, targets.parts[name], name)
            for name, component in self.components.items()
            if component.name == "classification"
        ]
        if len(is_right) == len(self.names):
            known_RX = np.stack(is_right, axis=1)
            known_RX = known_RX[~np.isnan(known_RX).any(axis=1)]
            scores["joint_accuracy"] = float(known_RX.all(axis=1).mean()) if len(known_RX) else None
        return {**scores, "columns": parts, "floor": floor}

    def _build(self, components: Mapping[str, Component]) -> None:
        self.components = dict(components)
        self.tasks = nn.ModuleDict()
        for name, component in components.items():
            try:
                task = build_task(component)
            except ValueError as error:
                raise ValueError(f"task.args.tasks.{name}: {error}") from error
            is_per_clip = task.output == "clip" and not isinstance(task, MultiTask)
            require(
                is_per_clip, f"task.args.tasks.{name}", "be a task with one output per clip", component.name
            )
            self.tasks[_module_name(name)] = task

    def _choose_metric(self) -> None:
        tasks = [task for _, task in self._items()]
        metrics = {task.metric for task in tasks}
        self.metric = f"mean_{tasks[0].metric}" if len(metrics) == 1 else "mean_skill"
        self.maximize = tasks[0].maximize if len(metrics) == 1 else True

    def _items(self) -> list[tuple[str, Task]]:
        tasks = [(name, self.tasks[_module_name(name)]) for name in self.components]
        return [(name, task) for name, task in tasks if isinstance(task, Task)]

    def _split(self, output: Tensor) -> list[tuple[str, Task, Tensor]]:
        parts = output.split(list(self.output_groups), dim=1)
        return [(name, task, part) for (name, task), part in zip(self._items(), parts, strict=True)]


class JoinedTargets:
    """The targets of several tasks; the name of the task and a slash precede the name of a target."""

    def __init__(self, parts: Mapping[str, Targets]):
        self.parts = dict(parts)

    def of_clips(self, sample_B: Tensor, time_BT: Tensor) -> dict[str, Tensor]:
        return {
            f"{name}/{key}": target
            for name, part in self.parts.items()
            for key, target in part.of_clips(sample_B, time_BT).items()
        }

    def of_sample(self, position: int) -> dict[str, Any]:
        return {
            f"{name}/{key}": value
            for name, part in self.parts.items()
            for key, value in part.of_sample(position).items()
        }


def skill(task: Task, scores: Mapping[str, Any]) -> float:
    """Compute the improvement over the floor: 1 for a perfect score, 0 for the floor.

    The task's metric is best at 1 if it is maximized, and at 0 otherwise. A floor that is perfect gives 0.
    """
    score, floor = scores[task.metric], scores["floor"][task.metric]
    best = 1.0 if task.maximize else 0.0
    return (score - floor) / (best - floor) if floor != best else 0.0


def _module_name(name: str) -> str:
    """Return a name that is no attribute of a module: columns are called "type" or "values", for example."""
    return f"column_{name}"


def _component(name: str, settings: Any) -> Component:
    is_valid = (
        isinstance(settings, Mapping)
        and isinstance(settings.get("name"), str)
        and set(settings) <= {"name", "args"}
        and isinstance(settings.get("args") or {}, Mapping)
    )
    require(is_valid, f"task.args.tasks.{name}", "have the form {name: TASK, args: {...}}", settings)
    component = Component(name=settings["name"], args=dict(settings.get("args") or {}))
    if {"label", "labels"} & set(component.args):
        return component
    accepted = [each for each in ("label", "labels") if accepts_argument(FOLDER, component, Task, each)]
    return replace(component, args={**component.args, **dict.fromkeys(accepted[:1], name)})


def _task_of_column(train: ShardIndex, column: str, *, key: str) -> Component:
    if column_kind(train, column, key=key) is float:
        return Component(name="regression", args={"labels": column, "allow_missing": True})
    return Component(name="classification", args={"label": column, "allow_missing": True})


def _own(name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Select the values of a task and remove its name from theirs."""
    prefix = f"{name}/"
    return {key.removeprefix(prefix): value for key, value in values.items() if key.startswith(prefix)}


def _has_classes(task: Task, pair: Sequence[str]) -> bool:
    try:
        task.target_flip([pair])
    except ValueError:
        return False
    return True


def _correct(predictions: Sequence[SamplePrediction], targets: Targets, name: str) -> np.ndarray:
    """1 where the most probable class of a sample is the true one, 0 elsewhere; NaN without a label."""
    label_R = np.array([targets.of_sample(each.position)["label"] for each in predictions])
    guesses = [each.values[f"{name}/prediction"].argmax() for each in predictions if each.values]
    return np.where(label_R >= 0, np.array(guesses) == label_R, np.nan)


def _mean(values: Any) -> float:
    return float(np.mean([float(value) for value in values]))
