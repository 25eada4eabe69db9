"""Samples of a training run by their class: balanced order, and videos that must not be flipped."""

import re
from collections.abc import Sequence

import numpy as np

from kinemae.data_tools.command import log
from kinemae.data_tools.index import ShardIndex
from kinemae.data_tools.stream.mixture import BalancedClasses, Concatenation, Source
from kinemae.finetune.config import FinetuneAugment, FinetuneData
from kinemae.finetune.tasks.base import Targets, Task

_SIDES = {"left": "right", "right": "left"}


def training_source(train: ShardIndex, task: Task, targets: Targets, data: FinetuneData) -> Source:
    """The samples of a run in their order: as they occur, by weight, or balanced by class.

    Raises:
        ValueError: the samples of this task have no single class.
    """
    if data.weight is not None:
        return Concatenation({data.train: train}, weight=data.weight)
    if data.balance == 0:
        return train
    label_R = _classes(task, targets, key="data.balance", unset="0")
    return BalancedClasses(train, label_R, balance=data.balance)


def flippable(task: Task, targets: Targets, augment: FinetuneAugment) -> np.ndarray | None:
    """Find the samples that may be flipped, from `augment.flip_except`; None for all.

    Raises:
        ValueError: a class that the training data does not have.
    """
    if augment.flip and not augment.flip_pairs:
        _warn_of_sides(task.classes, augment.flip_except)
    if not augment.flip_except:
        return None
    label_R = _classes(task, targets, key="augment.flip_except", unset="[]")
    unknown = [name for name in augment.flip_except if name not in task.classes]
    if unknown:
        raise ValueError(
            f"augment.flip_except: expected classes of the training data, got {unknown[0]!r}; "
            f"fix: take names such as {', '.join(task.classes[:5])}"
        )
    excluded = [task.classes.index(name) for name in augment.flip_except]
    return ~np.isin(label_R, excluded)


def _classes(task: Task, targets: Targets, *, key: str, unset: str) -> np.ndarray:
    label_R = task.sample_classes(targets)
    if label_R is None:
        raise ValueError(
            f"{key}: expected {unset}, since samples of this task have no single class; fix: remove it"
        )
    return label_R


def _warn_of_sides(classes: Sequence[str], excluded: Sequence[str]) -> None:
    """Warn if the names of two classes differ in left and right: a flipped clip of one shows the other."""
    for name in classes:
        other = re.sub("left|right", lambda side: _SIDES[side[0]], name)
        if other != name and other in classes and name not in excluded:
            log.warning(
                "augment.flip: half of the clips are flipped, which turns %s into %s; "
                "fix: augment.flip=false, or augment.flip_pairs with such pairs of classes",
                name,
                other,
            )
            return
