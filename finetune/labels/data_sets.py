"""The data sets of a fine-tuning run: for training, for selecting the best model, and for the result."""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from kinemae.data_tools.command import DataError, log
from kinemae.data_tools.holdout import hold_out
from kinemae.data_tools.index import ShardIndex, open_index
from kinemae.data_tools.randomness import generator
from kinemae.data_tools.stream.frame_sampling import ClipConfig
from kinemae.finetune.config import FinetuneConfig
from kinemae.finetune.labels.checks import check_leaks, check_seen_classes
from kinemae.finetune.labels.labelled_data import open_labelled
from kinemae.finetune.tasks.base import Targets, Task

NO_TRAINING_DATA = "none"
"""`data.train` of an imported model."""

_QUANTILES = (0.25, 0.5, 0.75)


@dataclass(frozen=True)
class DataSet:
    """A data set.

    Attributes:
        key: config key and folder, for messages.
        place: its folder, for results.
    """

    index: ShardIndex
    key: str
    place: str


class DataSets(NamedTuple):
    """The data sets of a run.

    Attributes:
        whole: data.train with its held-out part.
        train: the samples to train with.
        selection: the data of the validations during training.
        scored: the data of the result; the same object as `selection` if it is the same data.
    """

    whole: DataSet
    train: DataSet
    selection: DataSet
    scored: DataSet


def open_data_sets(
    config: FinetuneConfig, task: Task, clip: ClipConfig, *, check_shards: bool = True
) -> DataSets:
    """Open and check the data sets of a run, and fit the task to the training part.

    Args:
        check_shards: see `open_index`; one process of a job checks the shards.

    Raises:
        DataError: a folder is no data set, the task cannot use it, or two sets share groups.
        ValueError: the task does not support these clips.
    """
    config.evaluate.check_clip(clip)
    whole = _open(config, "train", task, clip, check_shards)
    task.fit(whole.index, key=whole.key)
    train = whole
    held_out: DataSet | None = None
    if config.held_out_fraction:
        train, held_out = _split(config, task, whole)
        task.fit(train.index, key=train.key)
    named = {"held_out": held_out}
    for name in ("validation", "test"):
        is_given = getattr(config.data, name) is not None
        named[name] = _open(config, name, task, clip, check_shards) if is_given else None
    sets = {data.key: data.index for data in (whole, named["validation"], named["test"]) if data is not None}
    check_leaks(sets, policy=config.data.leaks)
    selection = held_out or named["validation"]
    scored = named[config.scored_data]
    assert selection is not None and scored is not None, (
        "the config names a set, or some of train is held out"
    )
    for data in named.values():
        if data is not None:
            task.read(data.index, key=data.key)
            check_seen_classes(task, train.index, data.index, key=data.key)
    return DataSets(whole, train, selection, scored)


def open_scored(
    config: FinetuneConfig, task: Task, clip: ClipConfig, *, check_shards: bool = True
) -> DataSet:
    """Open the data of `evaluate.data`, for a trained task.

    Raises:
        DataError: see `open_data_sets`.
    """
    config.evaluate.check_clip(clip)
    name = config.scored_data
    if name == "held_out":
        data = _split(config, task, _open(config, "train", task, clip, check_shards))[1]
    else:
        data = _open(config, name, task, clip, check_shards)
        _check_against_training(config, data)
    task.read(data.index, key=data.key)
    return data


def _check_against_training(config: FinetuneConfig, data: DataSet) -> None:
    """Check that the scored data shares nothing with the training data, if this can still be opened."""
    folder = config.data.train
    try:
        train = open_index(folder, cache=config.data.cache, check_shards=False, outage_s=0)
        train = config.data.selected("train", train)
    except DataError as error:
        if folder != NO_TRAINING_DATA:
            log.warning("data.train: not compared with the scored data, since it cannot be opened: %s", error)
        return
    check_leaks({f"data.train={folder}": train, data.key: data.index}, policy=config.data.leaks)


def validation_samples(config: FinetuneConfig, index: ShardIndex) -> list[int]:
    """Return ascending positions of at most `validate.videos` samples, a function of the seed."""
    most = config.validate.videos or len(index)
    drawn = torch.randperm(len(index), generator=generator(config.seed, purpose="validation samples"))
    return sorted(drawn[:most].tolist())


def _open(config: FinetuneConfig, name: str, task: Task, clip: ClipConfig, check_shards: bool) -> DataSet:
    index = open_labelled(config.data, name, task=task, clip=clip, check_shards=check_shards)
    place = getattr(config.data, name)
    return DataSet(index, f"data.{name}={place}", place)


def _split(config: FinetuneConfig, task: Task, whole: DataSet) -> tuple[DataSet, DataSet]:
    """Divide the training data into a part to train with and a held-out part, in whole groups."""
    targets = task.read(whole.index, key=whole.key)
    train, held_out = hold_out(
        whole.index,
        fraction=config.held_out_fraction,
        seed=config.seed,
        key=whole.key,
        labels=_strata(task, targets, len(whole.index)),
    )
    part = f"validate.fraction={config.held_out_fraction:g} of {whole.key}"
    parts = (whole.index.view(train), whole.key), (whole.index.view(held_out), part)
    return DataSet(*parts[0], whole.place), DataSet(*parts[1], f"{whole.place} (held out)")


def _strata(task: Task, targets: Targets, count: int) -> list[Hashable]:
    """Return what to balance: the class of each sample, or the quartile of the first real number."""
    class_R = task.sample_classes(targets)
    if class_R is not None:
        return list(class_R.tolist())
    rows = [targets.of_sample(position) for position in range(count)]
    for name in rows[0] if rows else ():
        values = [row[name] for row in rows]
        if all(isinstance(value, int | float | None) for value in values):
            value_R = np.array([np.nan if value is None else value for value in values], dtype=np.float64)
            known_R = value_R[np.isfinite(value_R)]
            if len(known_R):
                quartile_R = np.searchsorted(np.quantile(known_R, _QUANTILES), value_R)
                return [None if np.isnan(v) else int(q) for v, q in zip(value_R, quartile_R, strict=True)]
    return [0] * count
