"""Multi-label classification: any number of classes per sample."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kinemae.data_tools.command import DataError
from kinemae.data_tools.config import require
from kinemae.data_tools.index import ShardIndex
from kinemae.finetune.labels.columns import column_numbers, column_texts
from kinemae.finetune.labels.target_flips import TargetFlip, swapped_classes
from kinemae.finetune.losses import binary_losses, mean_of_known
from kinemae.finetune.metrics.multilabel import multilabel_metrics
from kinemae.finetune.tasks.base import ColumnTargets, NothingToScore, SamplePrediction, Targets, Task


class MultiLabel(Task):
    """A yes or no for every class; the loss of a clip is the mean over its known classes.

    Args:
        label: a column of text with the classes of a sample, joined by `separator`; "" for none of them.
        labels: instead of `label`: columns of 0 and 1, one per class.
        separator: text between two classes.
        loss: "bce": binary cross entropy. "focal": with the factor (1 - p) ** gamma. "asymmetric": with a
            factor for negatives only, and a margin below which a negative has no loss (arXiv 2009.14119).
        gamma: exponent of the focal loss, or of the negatives of the asymmetric loss.
        margin: of the asymmetric loss.
        threshold: probability from which a class counts as predicted, for F1.
        allow_missing: accept missing labels: a null text, or null in some columns of 0 and 1.
    """

    metric = "map"
    classes: tuple[str, ...] = ()

    def __init__(  # noqa: PLR0913 - keyword-only
        self,
        *,
        label: str | None = None,
        labels: list[str] | None = None,
        separator: str = ";",
        loss: str = "bce",
        gamma: float = 2.0,
        margin: float = 0.05,
        threshold: float = 0.5,
        allow_missing: bool = False,
    ):
        super().__init__()
        is_list = (
            isinstance(labels, list) and len(labels) > 0 and all(isinstance(each, str) for each in labels)
        )
        is_one = (labels is None) == (label is not None) and (label is not None or is_list)
        both = {"label": label, "labels": labels}
        require(is_one, "task.args", "have either label=COLUMN or labels=[COLUMN, ...]", both)
        known = ("bce", "focal", "asymmetric")
        require(loss in known, "task.args.loss", f"be one of {', '.join(known)}", loss)
        require(gamma == 0 or gamma >= 1, "task.args.gamma", "be 0, or 1 or more", gamma)
        require(0 <= margin < 1, "task.args.margin", "lie in [0, 1)", margin)
        require(0 < threshold < 1, "task.args.threshold", "lie strictly between 0 and 1", threshold)
        require(separator != "", "task.args.separator", "be a text", separator)
        self.label = label
        self.labels = labels
        self.separator = separator
        self.loss_name = loss
        self.gamma = gamma
        self.margin = margin
        self.threshold = threshold
        self.allow_missing = allow_missing

    def fit(self, train: ShardIndex, *, key: str) -> None:
        if self.labels is not None:
            self.classes = tuple(self.labels)
        else:
            names = {name for sample in self._names(train, key=key) for name in sample or ()}
            if not names:
                raise DataError(
                    f"{key}: expected classes in the column {self.label}, got none; "
                    "fix: choose another column"
                )
            self.classes = tuple(sorted(names))
        has_class_Y = (self._matrix(train, key=key) > 0).any(axis=0)
        if not has_class_Y.all():
            absent = self.classes[int((~has_class_Y).argmax())]
            raise DataError(
                f"{key}: expected a video of every class, got none of {absent}; fix: remove it from labels"
            )

    def read(self, index: ShardIndex, *, key: str) -> ColumnTargets:
        target_RY = self._matrix(index, key=key)
        if not (target_RY > 0).any():
            raise DataError(f"{key}: expected a video of any class, got none; fix: choose another column")
        return ColumnTargets({"labels": target_RY})

    def loss(self, output: Tensor, targets: Mapping[str, Tensor]) -> Tensor:
        target_BY = targets["labels"]
        is_asymmetric = self.loss_name == "asymmetric"
        loss_BY = binary_losses(
            output,
            target_BY.clamp(min=0).to(output.dtype),
            gamma_positive=self.gamma if self.loss_name == "focal" else 0.0,
            gamma_negative=0.0 if self.loss_name == "bce" else self.gamma,
            margin=self.margin if is_asymmetric else 0.0,
        )
        return mean_of_known(loss_BY, target_BY >= 0)

    def has_target(self, targets: Mapping[str, Tensor]) -> Tensor:
        return (targets["labels"] >= 0).any(dim=1)

    def target_flip(self, pairs: Sequence[Sequence[str]]) -> TargetFlip:
        return TargetFlip(permute={"labels": swapped_classes(self.classes, pairs)})

    def predict(self, output: Tensor) -> Tensor:
        return torch.sigmoid(output.double())

    def score(self, predictions: Sequence[SamplePrediction], targets: Targets) -> dict[str, Any]:
        target_RY = np.array([targets.of_sample(each.position)["labels"] for each in predictions])
        probability_RY = np.stack([each.values["prediction"] for each in predictions if each.values])
        if not (target_RY > 0).any():
            raise NothingToScore(
                "expected a readable video of any class, got none; fix: label some of the validation videos"
            )
        scores = multilabel_metrics(probability_RY, target_RY, self.classes, threshold=self.threshold)
        # Without information all samples have the same rank, and all classes count as predicted.
        equal_RY = np.full(probability_RY.shape, self.threshold)
        constant = multilabel_metrics(equal_RY, target_RY, self.classes, threshold=self.threshold)
        return {**scores, "floor": {name: constant[name] for name in ("map", "f1_micro", "f1_macro")}}

    def _matrix(self, index: ShardIndex, *, key: str) -> np.ndarray:
        """Presence of each class in each sample: 1, 0, or -1 if unknown, int64."""
        if self.labels is not None:
            columns = [self._column(index, name, key=key) for name in self.labels]
            return np.stack(columns, axis=1)
        number_of = {name: number for number, name in enumerate(self.classes)}
        target_RY = np.zeros((len(index), len(self.classes)), dtype=np.int64)
        for position, names in enumerate(self._names(index, key=key)):
            if names is None:
                target_RY[position] = -1
            for name in names or ():
                if name not in number_of:
                    sample = index.sample(position)
                    raise DataError(
                        f"{key}: expected the {len(self.classes)} classes of the training data in the column "
                        f"{self.label}, got {name!r} in {sample.key} ({sample.name}); "
                        "fix: add training videos of it, or remove it"
                    )
                target_RY[position, number_of[name]] = 1
        return target_RY

    def _names(self, index: ShardIndex, *, key: str) -> list[tuple[str, ...] | None]:
        texts = column_texts(index, str(self.label), key=key, may_miss=self.allow_missing)
        return [
            None
            if text is None
            else tuple(filter(None, (part.strip() for part in text.split(self.separator))))
            for text in texts
        ]

    def _column(self, index: ShardIndex, name: str, *, key: str) -> np.ndarray:
        value_R = column_numbers(index, name, key=key, may_miss=self.allow_missing)
        value_R = np.where(np.isnan(value_R), -1, value_R)
        is_bad_R = ~np.isin(value_R, (-1, 0, 1))
        if is_bad_R.any():
            bad = int(is_bad_R.argmax())
            sample = index.sample(bad)
            raise DataError(
                f"{key}: expected 0 or 1 in the column {name}, got {value_R[bad]:g} in {sample.key} "
                f"({sample.name}); fix: choose columns of 0 and 1"
            )
        return value_R.astype(np.int64)
