"""What must be true of the labels before a single process group starts."""

import numpy as np

from kinemae.data_tools.command import DataError, log
from kinemae.data_tools.index import ShardIndex
from kinemae.finetune.config import FinetuneConfig


def check_data(config: FinetuneConfig, train: ShardIndex, validation: ShardIndex) -> None:
    """Refuse data that cannot be learnt from or scored; warn of what is only odd.

    Raises:
        DataError: a video without a usable label, no classes, other classes in the validation data, or
            fewer clips than one global batch.
    """
    _check_labels(train, key="data.train", folder=config.data.train)
    check_validation(validation, train.classes, folder=config.data.validation)
    clips = len(train) * config.data.views_per_video
    if clips < config.batch.global_clips:
        raise DataError(
            f"one pass over data.train gives {clips} clips ({len(train)} videos with data.views_per_video="
            f"{config.data.views_per_video}), fewer than batch.global_clips={config.batch.global_clips}: "
            "lower it, or raise data.views_per_video"
        )
    seen = np.unique(train.column("label"))
    if len(seen) < len(train.classes):
        absent = next(name for position, name in enumerate(train.classes) if position not in seen)
        log.warning("%d classes have no training video, first %s", len(train.classes) - len(seen), absent)
    if len(seen) == 1:
        log.warning("every training video has the same label, %s: any score is empty", train.classes[seen[0]])


def check_validation(validation: ShardIndex, classes: tuple[str, ...], *, folder: str) -> None:
    """Refuse validation data without labels or with classes other than the model's.

    Raises:
        DataError: as said, naming what differs.
    """
    _check_labels(validation, key="data.validation", folder=folder)
    if validation.classes == classes:
        return
    foreign = [name for name in validation.classes if name not in classes]
    lacking = [name for name in classes if name not in validation.classes]
    if foreign:
        differ = f"{foreign[0]!r} is not among the {len(classes)} classes trained on"
    elif lacking:
        differ = f"it lacks {lacking[0]!r}, one of the {len(classes)} classes trained on"
    else:
        differ = "the same classes stand in another order"
    raise DataError(
        f"data.validation={folder} has other classes: {differ}; shard both parts with one command"
    )


def _check_labels(index: ShardIndex, *, key: str, folder: str) -> None:
    label_R = index.column("label")
    if not index.classes or (label_R < 0).all():
        raise DataError(
            f"{key}={folder} has no labels: shard a source with one folder a class, or a csv of path,label"
        )
    bad = np.flatnonzero((label_R < 0) | (label_R >= len(index.classes)))
    if len(bad):
        sample = index.sample(int(bad[0]))
        known = len(index.classes)
        raise DataError(
            f"{key}={folder}: {len(bad)} of {len(index)} videos are in none of the {known} classes, "
            f"first {sample.key} ({sample.name}) with label {sample.label}: label it or leave it out, "
            "and shard again"
        )
