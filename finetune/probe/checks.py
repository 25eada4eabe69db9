"""Checks of a probe's data before anything is encoded or trained."""

from collections import Counter
from typing import Any

import numpy as np

from kinemae.data_tools.command import DataError
from kinemae.data_tools.index import ShardIndex
from kinemae.finetune.labels.checks import check_leaks
from kinemae.finetune.probe.config import ProbeConfig
from kinemae.finetune.probe.store import Features
from kinemae.finetune.tasks.base import Targets, Task
from kinemae.finetune.tasks.classification import Classification


def check_probe_data(
    config: ProbeConfig, task: Task, train: ShardIndex, validation: ShardIndex, targets: Targets
) -> None:
    """Reject data that a probe cannot use.

    Args:
        targets: of the training data.

    Raises:
        ValueError: a task or a number that does not fit.
        DataError: unusable data.
    """
    if task.output != "clip":
        raise ValueError(
            f"task.name: expected a task with one output per clip, got {config.task.name}; fix: use `kinemae "
            "finetune train ... adapt.method=frozen` for this task"
        )
    named = {
        f"data.train={config.data.train}": train,
        f"data.validation={config.data.validation}": validation,
    }
    check_leaks(named, policy=config.data.leaks)
    if isinstance(task, Classification):
        check_classes(config, task, targets, samples=len(train))
    elif config.method in ("logistic", "knn"):
        raise ValueError(
            f"method: expected linear or attentive for the task {config.task.name}, got {config.method}; "
            "fix: set method=linear"
        )
    most = max(config.knn.k or [1])
    if config.method == "knn" and most > len(train):
        raise ValueError(
            f"knn.k: expected at most {len(train)}, the number of training samples, got {most}; fix: lower it"
        )


def check_classes(config: ProbeConfig, task: Classification, targets: Targets, *, samples: int) -> None:
    """Reject training labels of one class, and few-shot settings that a class cannot fill.

    Raises:
        DataError: one class only, or fewer samples than classes.
        ValueError: `few_shot.per_class` is above the samples of a class.
    """
    counts = Counter(labels_of(targets, samples).tolist())
    counts.pop(-1, None)
    named = f"data.train={config.data.train}"
    if len(counts) < 2:
        raise DataError(
            f"{named}: expected at least two classes, got only {task.classes[next(iter(counts))]!r}; fix: "
            "add videos of other classes"
        )
    if sum(counts.values()) < len(task.classes):
        raise DataError(
            f"{named}: expected at least one sample per class, {len(task.classes)} in all, got "
            f"{sum(counts.values())}; fix: add samples, or remove classes"
        )
    rarest = min(counts, key=lambda number: counts[number])
    most = max(config.few_shot.per_class, default=0)
    if most > counts[rarest]:
        raise ValueError(
            f"few_shot.per_class: expected at most {counts[rarest]}, the training samples of class "
            f"{task.classes[rarest]!r}, got {most}; fix: lower it"
        )


def labels_of(targets: Targets, samples: int) -> np.ndarray:
    """The class number of every sample of a classification; -1 for none."""
    return np.array([targets.of_sample(position)["label"] for position in range(samples)], dtype=np.int64)


def check_finite(features: Features, keys: Any, *, key: str) -> None:
    """Reject features with NaN or infinity.

    Raises:
        DataError: names the first sample.
    """
    for array in features.layers.values():
        for first in range(0, len(features.readable), 256):
            some = features.readable[first : first + 256]
            values = array[some]
            # Bits of bfloat16: NaN and infinity have all exponent bits.
            is_finite = (values & 0x7F80) != 0x7F80 if values.dtype == np.uint16 else np.isfinite(values)
            bad = np.flatnonzero(~is_finite.reshape(len(some), -1).all(axis=1))
            if len(bad):
                raise DataError(
                    f"{key}: expected finite features, got NaN or infinity in sample "
                    f"{keys[some[bad[0]]]}; fix: check the encoder's weights and features.dtype"
                )
