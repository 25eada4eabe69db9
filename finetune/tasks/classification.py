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
from kinemae.finetune.labels.columns import class_numbers, classes_of
from kinemae.finetune.labels.target_flips import TargetFlip, swapped_classes
from kinemae.finetune.losses import (
    CLASS_WEIGHTS,
    binary_losses,
    class_weights,
    focal_cross_entropy,
    smoothed_targets,
)
from kinemae.finetune.metrics.classification import classification_metrics
from kinemae.finetune.tasks.base import ColumnTargets, NothingToScore, SamplePrediction, Targets, Task


class Classification(Task):
    """One class of a column.

    Args:
        label: the column: "label", with the classes of the data set, or an extra column of text or integers,
            whose distinct values in the training data are the classes.
        loss: "cross_entropy" of a softmax; "focal": cross entropy that is smaller for clips with a high
            probability of their class; "bce": binary cross entropy of every class against the others.
        gamma: exponent of the focal loss.
        class_weights: weights of the clips by their class, with a mean of 1: "none"; "balanced": inverse to
            the class's number of training samples; "effective": inverse to its effective number of samples.
        beta: of the effective number; the nearer to 1, the nearer to "balanced".
        label_smoothing: fraction of the target distribution spread over all classes.
        allow_missing: accept samples without a label; they have no loss and no score.
    """

    classes: tuple[str, ...] = ()
    class_weight_Y: Tensor

    def __init__(  # noqa: PLR0913 - keyword-only
        self,
        *,
        label: str = "label",
        loss: str = "cross_entropy",
        gamma: float = 2.0,
        class_weights: str = "none",
        beta: float = 0.999,
        label_smoothing: float = 0.0,
        allow_missing: bool = False,
    ):
        super().__init__()
        known = ("cross_entropy", "focal", "bce")
        require(loss in known, "task.args.loss", f"be one of {', '.join(known)}", loss)
        schemes = ", ".join(CLASS_WEIGHTS)
        is_scheme = class_weights in CLASS_WEIGHTS
        require(is_scheme, "task.args.class_weights", f"be one of {schemes}", class_weights)
        require(gamma == 0 or gamma >= 1, "task.args.gamma", "be 0, or 1 or more", gamma)
        require(0 < beta < 1, "task.args.beta", "lie strictly between 0 and 1", beta)
        key = "task.args.label_smoothing"
        require(0 <= label_smoothing < 1, key, "lie in [0, 1)", label_smoothing)
        self.label = label
        self.loss_name = loss
        self.gamma = gamma
        self.weighting = class_weights
        self.beta = beta
        self.label_smoothing = label_smoothing
        self.allow_missing = allow_missing
        self.register_buffer("class_weight_Y", torch.ones(0), persistent=False)

    def fit(self, train: ShardIndex, *, key: str) -> None:
        classes = classes_of(train, self.label, key=key)
        label_R = class_numbers(train, self.label, classes, key=key, may_miss=self.allow_missing)
        count_Y = np.bincount(label_R[label_R >= 0], minlength=len(classes))
        absent = [name for name, count in zip(classes, count_Y, strict=True) if count == 0]
        if absent:
            log.warning("data.train: %d classes have no training video, first %s", len(absent), absent[0])
        if len(classes) - len(absent) == 1:
            name = classes[int(count_Y.argmax())]
            raise DataError(
                f"{key}: expected at least two classes in the column {self.label}, got {name!r} for all "
                "videos; fix: choose another column, or add videos of other classes"
            )
        weight_Y = class_weights(torch.from_numpy(count_Y), self.weighting, beta=self.beta)
        self.load_state({"classes": classes, "class_weights": weight_Y.tolist()})

    def state(self) -> dict[str, Any]:
        state = super().state()
        return state if self.weighting == "none" else state | {"class_weights": self.class_weight_Y.tolist()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        super().load_state(state)
        weights = state["class_weights"] if self.weighting != "none" else [1.0] * len(self.classes)
        if len(weights) != len(self.classes):
            raise ValueError(f"expected {len(self.classes)} class weights, got {len(weights)}")
        self.class_weight_Y = torch.tensor(weights, dtype=torch.float32)

    def read(self, index: ShardIndex, *, key: str) -> ColumnTargets:
        number_R = class_numbers(index, self.label, self.classes, key=key, may_miss=self.allow_missing)
        if (number_R < 0).all():
            raise DataError(
                f"{key}: expected labels in the column {self.label}, got none; fix: choose another column"
            )
        return ColumnTargets({"label": number_R})

    def loss(self, output: Tensor, targets: Mapping[str, Tensor]) -> Tensor:
        label_B = targets["label"]
        if self.loss_name == "cross_entropy":
            weight_Y = None if self.weighting == "none" else self.class_weight_Y.to(output.dtype)
            return functional.cross_entropy(
                output,
                label_B,
                weight_Y,
                ignore_index=-1,
                reduction="none",
                label_smoothing=self.label_smoothing,
            )
        target_BY = smoothed_targets(label_B, self.outputs, self.label_smoothing)
        if self.loss_name == "focal":
            loss_B = focal_cross_entropy(output, target_BY, gamma=self.gamma)
        else:
            loss_B = binary_losses(output, target_BY).mean(dim=1)
        weight_B = self.class_weight_Y.to(output.dtype)[label_B.clamp(min=0)]
        return torch.where(label_B >= 0, weight_B * loss_B, 0.0)

    def has_target(self, targets: Mapping[str, Tensor]) -> Tensor:
        return targets["label"] >= 0

    def target_flip(self, pairs: Sequence[Sequence[str]]) -> TargetFlip:
        return TargetFlip(renumber={"label": swapped_classes(self.classes, pairs)})

    def train_metrics(self, output: Tensor, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if self.allow_missing:  # a mean over all clips would count those without a label as wrong
            return {}
        return {"accuracy": (output.argmax(dim=1) == targets["label"]).float()}

    def sample_classes(self, targets: Targets) -> np.ndarray | None:
        assert isinstance(targets, ColumnTargets)
        return targets.columns["label"]

    def predict(self, output: Tensor) -> Tensor:
        if self.loss_name == "bce":
            p_VY = torch.sigmoid(output.double())
            return p_VY / p_VY.sum(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
        return torch.softmax(output.double(), dim=1)

    def score(self, predictions: Sequence[SamplePrediction], targets: Targets) -> dict[str, Any]:
        label_R = np.array([targets.of_sample(each.position)["label"] for each in predictions])
        probability_RY = np.stack([each.values["prediction"] for each in predictions if each.values])
        is_known_R = label_R >= 0
        if not is_known_R.any():
            raise NothingToScore(
                f"expected a label in the column {self.label} for a readable video, got none; "
                "fix: label some of the validation videos"
            )
        result = classification_metrics(probability_RY, label_R, self.classes)
        absent = [name for name, accuracy in result["per_class_accuracy"].items() if accuracy is None]
        if absent:
            named = ", ".join(absent[:5]) + (", ..." if len(absent) > 5 else "")
            count = len(self.classes)
            log.warning("%d of %d classes have no validation video: %s", len(absent), count, named)
        frequent = np.sort(np.bincount(label_R[is_known_R]))[::-1] / is_known_R.sum()
        floor = {"top1": float(frequent[0]), "top5": float(frequent[:5].sum())}  # always the same classes
        return {**result, "floor": floor}
