"""Ordinal regression: classes with an order, such as low, middle and high."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from kinemae.data_tools.command import DataError
from kinemae.data_tools.config import require
from kinemae.data_tools.index import ShardIndex
from kinemae.finetune.labels.columns import class_numbers, classes_of
from kinemae.finetune.labels.target_flips import TargetFlip, swapped_classes
from kinemae.finetune.losses import binary_losses
from kinemae.finetune.metrics.ordinal import ordinal_metrics
from kinemae.finetune.tasks.base import ColumnTargets, NothingToScore, SamplePrediction, Targets, Task

_MIN_GAP = 1e-2  # between two thresholds, in logits: a class without samples has an interval too


class Ordinal(Task):
    """Cumulative link model: the probabilities that the class is above each but the last.

    The loss is the mean of the binary cross entropies of these probabilities (arXiv 1901.07884, CORAL). CORAL
    keeps them in order with a shared weight vector and a learned bias per class. Here the first output is the
    first logit, and each further output is a positive difference to the next one (softplus), which keeps them
    in order with any head. An output of 0 gives the class frequencies of the training set.

    Args:
        label: a column of text or integers, or "label".
        order: the classes from low to high. None: the order of the numbers in a column of integers.
        allow_missing: accept samples without a label; they have no loss and no score.
    """

    metric = "mae_classes"
    maximize = False
    classes: tuple[str, ...] = ()
    offset_X: Tensor

    def __init__(self, *, label: str, order: list[Any] | None = None, allow_missing: bool = False):
        super().__init__()
        is_list = order is None or (
            isinstance(order, list) and len(order) == len({str(n) for n in order}) > 1
        )
        require(is_list, "task.args.order", "be a list of at least two different classes", order)
        self.label = label
        self.order = order
        self.allow_missing = allow_missing
        self.register_buffer("offset_X", torch.zeros(0), persistent=False)

    def fit(self, train: ShardIndex, *, key: str) -> None:
        found = classes_of(train, self.label, key=key)
        if self.order is None and not all(_is_integer(name) for name in found):
            raise DataError(
                f"{key}: expected integers in the column {self.label}, or an order, got {found[0]!r}; "
                "fix: set task.args.order=[LOW, ..., HIGH]"
            )
        classes = found if self.order is None else tuple(str(name) for name in self.order)
        unknown = sorted(set(found) - set(classes))
        if unknown:
            raise DataError(
                f"{key}: expected the classes of task.args.order in the column {self.label}, got "
                f"{unknown[0]!r}; fix: add it to the order"
            )
        if len(classes) < 2:
            raise DataError(
                f"{key}: expected at least two classes in the column {self.label}, got {', '.join(classes)}; "
                "fix: choose another column"
            )
        label_R = self._numbers(train, classes, key=key)
        count_Y = np.bincount(label_R[label_R >= 0], minlength=len(classes)) + 0.5
        above_X = 1 - np.cumsum(count_Y)[:-1] / count_Y.sum()
        logit_X = np.log(above_X / (1 - above_X))
        gap_X = np.maximum(-np.diff(logit_X), _MIN_GAP)
        # The inverse of softplus.
        offset_X = [float(logit_X[0]), *(gap + math.log(-math.expm1(-gap)) for gap in gap_X.tolist())]
        self.load_state({"classes": classes, "offsets": offset_X})

    def state(self) -> dict[str, Any]:
        return {"classes": list(self.classes), "offsets": self.offset_X.tolist()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        offset_X = torch.tensor(state["offsets"], dtype=torch.float32)
        classes = tuple(map(str, state["classes"]))
        if offset_X.shape != (len(classes) - 1,):
            raise ValueError(f"expected {len(classes) - 1} offsets, got {len(offset_X)}")
        self.classes, self.offset_X = classes, offset_X

    @property
    def outputs(self) -> int:
        return len(self.classes) - 1

    def read(self, index: ShardIndex, *, key: str) -> ColumnTargets:
        number_R = self._numbers(index, self.classes, key=key)
        if (number_R < 0).all():
            raise DataError(
                f"{key}: expected labels in the column {self.label}, got none; fix: choose another column"
            )
        return ColumnTargets({"label": number_R})

    def loss(self, output: Tensor, targets: Mapping[str, Tensor]) -> Tensor:
        label_B = targets["label"]
        threshold_X = torch.arange(self.outputs, device=output.device)
        is_above_BX = (label_B[:, None] > threshold_X).to(output.dtype)
        loss_B = binary_losses(self._logits(output), is_above_BX).mean(dim=1)
        return torch.where(label_B >= 0, loss_B, 0.0)

    def has_target(self, targets: Mapping[str, Tensor]) -> Tensor:
        return targets["label"] >= 0

    def sample_classes(self, targets: Targets) -> np.ndarray | None:
        assert isinstance(targets, ColumnTargets)
        return targets.columns["label"]

    def target_flip(self, pairs: Sequence[Sequence[str]]) -> TargetFlip:
        return TargetFlip(renumber={"label": swapped_classes(self.classes, pairs)})

    def predict(self, output: Tensor) -> Tensor:
        """Return the probabilities of being above each class but the last; see `Task.predict`."""
        return torch.sigmoid(self._logits(output.double()))

    def combine(self, prediction_V: Tensor, time_VT: Tensor) -> dict[str, np.ndarray]:
        """Return "prediction", the probabilities of the classes, from the mean over the views."""
        above_X = prediction_V.mean(dim=0).cpu().numpy()
        return {"prediction": -np.diff(np.concatenate([[1.0], above_X, [0.0]]))}

    def score(self, predictions: Sequence[SamplePrediction], targets: Targets) -> dict[str, Any]:
        label_R = np.array([targets.of_sample(each.position)["label"] for each in predictions])
        probability_RY = np.stack([each.values["prediction"] for each in predictions if each.values])
        if not (label_R >= 0).any():
            raise NothingToScore(
                f"expected a label in the column {self.label} for a readable video, got none; "
                "fix: label some of the validation videos"
            )
        median = int(np.median(label_R[label_R >= 0]))
        return {
            **self._metrics(median_classes(probability_RY), label_R),
            "classes": list(self.classes),
            "floor": self._metrics(np.full_like(label_R, median), label_R),
        }

    def _metrics(self, guess_R: np.ndarray, label_R: np.ndarray) -> dict[str, Any]:
        is_known_R = label_R >= 0
        top1 = float((guess_R == label_R)[is_known_R].mean())
        return {"top1": top1, **ordinal_metrics(guess_R, label_R, classes=len(self.classes))}

    def _logits(self, output_BX: Tensor) -> Tensor:
        """Map the outputs to decreasing logits of being above each class but the last."""
        shifted_BX = output_BX + self.offset_X.to(output_BX)
        step_BX = torch.cat([shifted_BX[:, :1], -functional.softplus(shifted_BX[:, 1:])], dim=1)
        return step_BX.cumsum(dim=1)

    def _numbers(self, index: ShardIndex, classes: Sequence[str], *, key: str) -> np.ndarray:
        # The classes of a data set have another order than these.
        return class_numbers(
            index, self.label, classes, key=key, may_miss=self.allow_missing, same_classes=False
        )


def median_classes(probability_RY: np.ndarray) -> np.ndarray:
    """Return the median class of each distribution, which has the smallest expected distance."""
    return (1 - probability_RY.cumsum(axis=1)[:, :-1] > 0.5).sum(axis=1)


def _is_integer(text: str) -> bool:
    return text.removeprefix("-").isdecimal()
