"""Predicted outputs of a run with their true values: classes, sets of labels, and numbers."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from kinemae.finetune.tasks.ordinal import median_classes


@dataclass(frozen=True, kw_only=True)
class ClassOutput:
    """One class per sample.

    Attributes:
        name: of the label column; "" if the run has a single one.
        result: the scores of this output.
        keys: of the samples with a label, R in number; empty without predictions of single samples.
        label_R, probability_RY: true class, and probabilities of all classes.
        is_ordinal: whether the classes have an order; then the median class is predicted.
    """

    name: str
    classes: tuple[str, ...]
    result: Mapping[str, Any]
    keys: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    label_R: np.ndarray
    probability_RY: np.ndarray
    is_ordinal: bool = False

    @property
    def confusion_YY(self) -> np.ndarray | None:
        """Counts by true class (row) and predicted class (column); None if they are unknown."""
        size = len(self.classes)
        if len(self.keys):
            counts_YY = np.zeros((size, size), dtype=np.int64)
            np.add.at(counts_YY, (self.label_R, self.guess_R), 1)
            return counts_YY
        given = np.asarray(self.result.get("confusion_matrix") or [], dtype=np.int64)
        return given if size and given.shape == (size, size) else None

    @property
    def guess_R(self) -> np.ndarray:
        """The predicted class of each sample."""
        if self.is_ordinal:
            return median_classes(self.probability_RY)
        return self.probability_RY.argmax(axis=1)

    @property
    def is_right_R(self) -> np.ndarray:
        """True where the predicted class is the true one."""
        return self.guess_R == self.label_R


@dataclass(frozen=True, kw_only=True)
class LabelsOutput:
    """Any number of classes per sample.

    Attributes:
        target_RY: 1, 0, or NaN if it is unknown.
    """

    name: str
    classes: tuple[str, ...]
    result: Mapping[str, Any]
    keys: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    target_RY: np.ndarray
    probability_RY: np.ndarray


@dataclass(frozen=True, kw_only=True)
class NumberOutput:
    """Numbers per sample.

    Attributes:
        names: of the V values.
        target_RV: NaN if it is unknown.
    """

    name: str
    names: tuple[str, ...]
    result: Mapping[str, Any]
    keys: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    target_RV: np.ndarray
    prediction_RV: np.ndarray


Output = ClassOutput | LabelsOutput | NumberOutput
