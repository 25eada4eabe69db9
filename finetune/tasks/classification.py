"""Classification: one class per sample."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from kinemae.data_tools.command import DataError, log
from kinemae.data_tools.config import require
from kinemae.data_tools.index import ShardIndex
from kinemae.finetune.metrics.classification import classification_metrics
from kinemae.finetune.tasks.base import ColumnTargets, SamplePrediction, Targets, Task


class Classification(Task):
    """Cross entropy over the classes of a column.

    Args:
        label: the column: "label", with the classes of the data set, or an extra column of text or integers,
            whose distinct values in the training data are the classes.
        label_smoothing: fraction of the target distribution spread over all classes.
    """

    classes: tuple[str, ...] = ()

    def __init__(self, *, label: str = "label", label_smoothing: float = 0.0):
        super().__init__()
        key = "task.args.label_smoothing"
        require(0 <= label_smoothing < 1, key, "lie in [0, 1)", label_smoothing)
        self.label = label
        self.label_smoothing = label_smoothing

    def fit(self, train: ShardIndex, *, key: str) -> None:
        self.classes = classes_of(train, self.label, key=key)
        with_samples = np.unique(class_numbers(train, self.label, self.classes, key=key))
        absent = [name for number, name in enumerate(self.classes) if number not in with_samples]
        if absent:
            log.warning("data.train: %d classes have no training video, first %s", len(absent), absent[0])
        if len(with_samples) == 1:
            name = self.classes[with_samples[0]]
            log.warning("data.train: all videos have the label %s, so the score means nothing", name)

    def state(self) -> dict[str, Any]:
        return {"classes": list(self.classes)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.classes = tuple(map(str, state["classes"]))

    @property
    def outputs(self) -> int:
        return len(self.classes)

    def read(self, index: ShardIndex, *, key: str) -> ColumnTargets:
        return ColumnTargets({"label": class_numbers(index, self.label, self.classes, key=key)})

    def loss(self, output: Tensor, targets: Mapping[str, Tensor]) -> Tensor:
        return functional.cross_entropy(
            output, targets["label"], reduction="none", label_smoothing=self.label_smoothing
        )

    def train_metrics(self, output: Tensor, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"accuracy": (output.argmax(dim=1) == targets["label"]).float()}

    def predict(self, output: Tensor) -> Tensor:
        return torch.softmax(output.double(), dim=1)

    def score(self, predictions: Sequence[SamplePrediction], targets: Targets) -> dict[str, Any]:
        label_R = np.array([targets.of_sample(each.position)["label"] for each in predictions])
        probability_RY = np.stack([each.values["prediction"] for each in predictions if each.values])
        result = classification_metrics(probability_RY, label_R, self.classes)
        absent = [name for name, accuracy in result["per_class_accuracy"].items() if accuracy is None]
        if absent:
            named = ", ".join(absent[:5]) + (", ..." if len(absent) > 5 else "")
            count = len(self.classes)
            log.warning("%d of %d classes have no validation video: %s", len(absent), count, named)
        return result


def classes_of(index: ShardIndex, column: str, *, key: str) -> tuple[str, ...]:
    """The classes of a column: those of the data set for "label", else the sorted distinct values.

    Raises:
        DataError: no such column, or no value in it.
    """
    if column == "label":
        if not index.classes or (index.column("label") < 0).all():
            raise DataError(
                f"{key}: expected labelled videos, got no labels; "
                "fix: shard a source with one folder per class, or a csv with the columns path,label"
            )
        return index.classes
    values = [value for value in _values(index, column, key=key).unique().to_pylist() if value is not None]
    if not values:
        raise DataError(
            f"{key}: expected labels in the column {column}, got none; fix: choose another column"
        )
    return tuple(str(value) for value in sorted(values))


def class_numbers(
    index: ShardIndex, column: str, classes: Sequence[str], *, key: str, may_miss: bool = False
) -> np.ndarray:
    """The class of every sample as its number in `classes`, int64.

    Args:
        may_miss: whether samples without a label get NO_LABEL; otherwise they are an error.

    Raises:
        DataError: a sample without a label, or with a class other than these.
    """
    if column == "label":
        _check_same_classes(index, classes, key=key)
        label_R = index.column("label").astype(np.int64)
        is_bad_R = (label_R < 0) & (not may_miss) | (label_R >= len(classes))
        names: Sequence[Any] = label_R
    else:
        names = _values(index, column, key=key).to_pylist()
        number_of = {name: number for number, name in enumerate(classes)}
        label_R = np.array([-1 if name is None else number_of.get(str(name), -2) for name in names], np.int64)
        is_bad_R = (label_R == -2) | ((label_R == -1) & (not may_miss))
    bad = np.flatnonzero(is_bad_R)
    if len(bad):
        sample = index.sample(int(bad[0]))
        raise DataError(
            f"{key}: expected one of the {len(classes)} classes in the column {column}, got another value in "
            f"{len(bad)} of {len(index)} videos, first {sample.key} ({sample.name}) with {names[bad[0]]}; "
            "fix: label or remove them, and shard again"
        )
    return label_R


def _values(index: ShardIndex, column: str, *, key: str) -> Any:
    if column not in index.extra:
        known = ", ".join(("label", *index.extra))
        raise DataError(f"{key}: expected a column {column}, got none; fix: choose one of {known}")
    return index.arrow_column(column)


def _check_same_classes(index: ShardIndex, classes: Sequence[str], *, key: str) -> None:
    if index.classes == tuple(classes):
        return
    if not index.classes:
        classes_of(index, "label", key=key)
    unknown = [name for name in index.classes if name not in classes]
    missing = [name for name in classes if name not in index.classes]
    if unknown:
        difference = f"{unknown[0]!r}, which is not one of them"
    elif missing:
        difference = f"none called {missing[0]!r}"
    else:
        difference = "the same classes in another order"
    raise DataError(
        f"{key}: expected the {len(classes)} classes of the training, got {difference}; "
        "fix: shard both splits with one command"
    )
