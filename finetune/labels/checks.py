"""Checks of the data of a fine-tuning run before it starts."""

from collections.abc import Mapping
from itertools import combinations

import numpy as np

from kinemae.data_tools.command import DataError, log
from kinemae.data_tools.index import ShardIndex
from kinemae.data_tools.leaks import dictionary_encode_column, find_leaks
from kinemae.finetune.config import FinetuneConfig
from kinemae.finetune.tasks.base import Task
from kinemae.finetune.tasks.classification import Classification
from kinemae.finetune.tasks.multi_task import MultiTask


def check_batch(config: FinetuneConfig, train: ShardIndex) -> None:
    """Reject a global batch with more clips than an epoch.

    Raises:
        DataError: fewer clips than one global batch.
    """
    views, batch = config.data.views_per_video, config.batch.global_clips
    clips = len(train) * views
    if clips < batch:
        raise DataError(
            f"batch.global_clips: expected at most {clips}, the clips of one epoch ({len(train)} videos x "
            f"data.views_per_video={views}), got {batch}; fix: lower it, or raise data.views_per_video"
        )


def check_leaks(sets: Mapping[str, ShardIndex], *, policy: str) -> None:
    """Check that no two data sets share a group or the content of a file.

    Args:
        sets: data sets by config key and folder, as in "data.train=FOLDER".
        policy: "error", or "warn" to log it.

    Raises:
        DataError: names the first value, and a sample of either set.
    """
    for (key, index), (other_key, other) in combinations(sets.items(), 2):
        for column, what in (("group", "group"), ("content", "file")):
            leaks = find_leaks(*dictionary_encode_column([index, other], column))
            if not leaks:
                continue
            samples = [each.sample(leaks[0].first[number]) for number, each in enumerate((index, other))]
            value = f" {leaks[0].value!r}" if column == "group" else ""
            problem = (
                f"{other_key}: expected no {what} of {key}, got {len(leaks)} in both, first {what}{value} of "
                f"{samples[0].name} and {samples[1].name}"
            )
            if policy == "error":
                raise DataError(f"{problem}; fix: split the data by {what}, or data.leaks=warn")
            log.warning("%s: the score is too high", problem)


def check_seen_classes(task: Task, train: ShardIndex, scored: ShardIndex, *, key: str) -> None:
    """Check that training has a sample of every class of the scored data, for classifications.

    Args:
        task: fitted.
        key: config key and folder of the scored data, for messages.

    Raises:
        DataError: names the first class and one of its samples.
    """
    for name, part in _classifications(task):
        train_R, scored_R = (part.read(index, key=key).columns["label"] for index in (train, scored))
        unseen_R = (scored_R >= 0) & ~np.isin(scored_R, train_R)
        if unseen_R.any():
            sample = scored.sample(int(unseen_R.argmax()))
            first, count = part.classes[scored_R[unseen_R][0]], len(np.unique(scored_R[unseen_R]))
            raise DataError(
                f"{key}: expected classes that training has{f' in {name}' * bool(name)}, got "
                f"{int(unseen_R.sum())} samples of {count} classes without training samples, first {first!r} "
                f"of {sample.name}; fix: train with samples of them, or do not score them"
            )


def _classifications(task: Task) -> list[tuple[str, Classification]]:
    """The classifications of a task, by the names of their columns; "" for a single one."""
    if isinstance(task, Classification):
        return [("", task)]
    parts = task.tasks.items() if isinstance(task, MultiTask) else ()
    return [(name, part) for name, part in parts if isinstance(part, Classification)]
