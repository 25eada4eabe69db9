"""Interface of tasks: what a run learns, from which columns of the index, with which loss and scores."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from kinemae.data_tools.command import DataError
from kinemae.data_tools.components import Component, build_component
from kinemae.data_tools.index import ShardIndex
from kinemae.data_tools.stream.frame_sampling import ClipConfig
from kinemae.finetune.labels.target_flips import TargetFlip

FOLDER = "kinemae.finetune.tasks"


class NothingToScore(DataError):
    """No readable sample of the scored data has a target."""


class Targets(Protocol):
    """Checked label columns of one data set. Loader workers receive a pickled copy."""

    def of_clips(self, sample_B: Tensor, time_BT: Tensor) -> dict[str, Tensor]:
        """Compute the targets of clips; the first dim of every tensor is B.

        Args:
            sample_B: positions of the samples in the index.
            time_BT: timestamps of the frames in seconds; NaN for a clip that could not be read.
        """

    def of_sample(self, position: int) -> dict[str, Any]:
        """Return the true values of a sample as JSON: columns of the table of predictions."""


class ColumnTargets:
    """Targets that are constant over a sample: one row of each array per sample."""

    def __init__(self, columns: Mapping[str, np.ndarray]):
        self.columns = dict(columns)

    def of_clips(self, sample_B: Tensor, time_BT: Tensor) -> dict[str, Tensor]:
        return {name: torch.from_numpy(values[sample_B.numpy()]) for name, values in self.columns.items()}

    def of_sample(self, position: int) -> dict[str, Any]:
        return {name: _as_json(values[position]) for name, values in self.columns.items()}


def _as_json(values: np.ndarray) -> Any:
    """Convert to numbers or nested lists; NaN, a missing number, becomes None."""
    return np.where(values == values, values.astype(object), np.array(None, dtype=object)).tolist()


@dataclass(frozen=True, kw_only=True)
class SamplePrediction:
    """Prediction for one sample, combined from its views.

    Attributes:
        position: of the sample in the index.
        values: what `Task.combine` returned; None for a sample that could not be read.
        error: why the sample could not be read.
        tokens: number of tokens per view that the encoder processed, averaged over the views.
        loss: the task's loss, averaged over the views.
        views: number of views.
    """

    position: int
    key: str
    values: dict[str, np.ndarray] | None
    error: str = ""
    tokens: float = 0.0
    loss: float = 0.0
    views: int = 0


class Task(nn.Module):
    """Base class. A task is built with its `task.args`, then gets its state from `fit` or `load_state`.

    A task is a module so that constants such as class weights move to the device. Its trained weights serve
    only the loss: they are in the checkpoints of the run and not in the saved model.

    Attributes:
        output: the kind of head that it needs, see `Head.output`.
        classes: names of the classes, for tasks that have them.
        metric: key of `score` by which models are selected.
        maximize: whether larger values of `metric` are better.
        mixes: whether the weighted loss of two clips' targets suits a mix of these clips (mixup, cutmix).
    """

    output: ClassVar[str] = "clip"
    classes: tuple[str, ...] = ()
    mixes: ClassVar[bool] = True
    metric: str = "top1"
    maximize: bool = True

    def view(self, index: ShardIndex, clip: ClipConfig, *, key: str) -> ShardIndex:
        """Return the samples of the task in a data set, for example one for each event of its videos.

        `fit` and `read` get the result. By default the samples are those of the data set.

        Args:
            clip: the clips of the run.
            key: config key and folder of the data, for messages.

        Raises:
            DataError: the data lacks the columns, or they hold other values than the task needs.
            ValueError: the task does not support these clips.
        """
        return index

    def fit(self, train: ShardIndex, *, key: str) -> None:
        """Learn from the training data what the outputs mean, such as class names.

        Args:
            key: config key and folder of the data, for messages.

        Raises:
            DataError: the data lacks the columns, or they hold other values than the task needs.
        """
        raise NotImplementedError

    def state(self) -> dict[str, Any]:
        """Return what `fit` learned, as JSON; by default `classes`."""
        return {"classes": list(self.classes)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore the result of `state`.

        Raises:
            KeyError, TypeError, ValueError: not such a state.
        """
        self.classes = tuple(map(str, state["classes"]))

    @property
    def outputs(self) -> int:
        """Number of values that the head computes per clip, slice or position; by default one per class."""
        return len(self.classes)

    @property
    def output_groups(self) -> tuple[int, ...]:
        """Numbers of consecutive outputs that belong to one label column; their sum is `outputs`."""
        return (self.outputs,)

    def read(self, index: ShardIndex, *, key: str) -> Targets:
        """Read and check the targets of a data set.

        Raises:
            DataError: names the column, the first wrong sample and a fix.
        """
        raise NotImplementedError

    def loss(self, output: Tensor, targets: Mapping[str, Tensor]) -> Tensor:
        """Compute loss_B, 0 for a clip without a target. `output` is float32."""
        raise NotImplementedError

    def has_target(self, targets: Mapping[str, Tensor]) -> Tensor:
        """Return whether each clip has a target, of shape (B,); by default all have one."""
        first = next(iter(targets.values()))
        return torch.ones(len(first), dtype=torch.bool, device=first.device)

    def target_flip(self, pairs: Sequence[Sequence[str]]) -> TargetFlip:
        """Return the change of the targets of clips that were flipped left to right.

        Args:
            pairs: pairs of class names that swap, from `augment.flip_pairs`.

        Raises:
            ValueError: the task has no such classes.
        """
        if pairs:
            raise ValueError(
                f"augment.flip_pairs: expected no pairs, since this task has no classes, got {pairs}; "
                "fix: remove them"
            )
        return TargetFlip()

    def train_metrics(self, output: Tensor, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Compute values of shape (B,) for the log, for example "accuracy"."""
        return {}

    def sample_classes(self, targets: Targets) -> np.ndarray | None:
        """The number of each sample's class in `classes`, negative for none; None if it has no single class.

        For class-balanced sampling and stratified hold-out.
        """
        return None

    def predict(self, output: Tensor) -> Tensor:
        """Map the output of V views to predictions whose mean over views is meaningful, in float64."""
        raise NotImplementedError

    def combine(self, prediction_V: Tensor, time_VT: Tensor) -> dict[str, np.ndarray]:
        """Combine the predictions of a sample's views; by default "prediction", their mean."""
        return {"prediction": prediction_V.mean(dim=0).cpu().numpy()}

    def score(self, predictions: Sequence[SamplePrediction], targets: Targets) -> dict[str, Any]:
        """Compute the metrics of readable samples, ordered by position, as JSON.

        Raises:
            NothingToScore: no sample has a target.
        """
        raise NotImplementedError


def build_task(component: Component) -> Task:
    """Build the task that a config names, before `fit`.

    Raises:
        ValueError: unknown task, or arguments that it rejects.
    """
    return build_component(FOLDER, component, Task)
