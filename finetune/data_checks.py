"""Check labels and classes before training or evaluation starts."""

import numpy as np

from kinemae.data_tools.command import DataError, log
from kinemae.data_tools.index import ShardIndex
from kinemae.finetune.config import FinetuneConfig


def check_data(config: FinetuneConfig, train: ShardIndex, validation: ShardIndex) -> None:
    """Reject data that cannot be used for training or scoring, and warn about classes without videos.

    Raises:
        DataError: a video without a valid label, no classes, different classes in the validation data, or
            fewer clips than one global batch.
    """
    _check_labels(train, key="data.train", folder=config.data.train)
    check_validation(validation, train.classes, folder=config.data.validation)
    views, batch = config.data.views_per_video, config.batch.global_clips
    clips = len(train) * views
    if clips < batch:
        raise DataError(
            f"batch.global_clips: expected at most {clips}, the clips of one epoch ({len(train)} videos x "
            f"data.views_per_video={views}), got {batch}; fix: lower it, or raise data.views_per_video"
        )
    with_videos = np.unique(train.column("label"))
    absent = [name for position, name in enumerate(train.classes) if position not in with_videos]
    if absent:
        log.warning("data.train: %d classes have no training video, first %s", len(absent), absent[0])
    if len(with_videos) == 1:
        name = train.classes[with_videos[0]]
        log.warning("data.train: all videos have the label %s, so the score means nothing", name)


def check_validation(validation: ShardIndex, classes: tuple[str, ...], *, folder: str) -> None:
    """Reject validation data without labels or with classes other than the model's.

    Raises:
        DataError: names the difference.
    """
    _check_labels(validation, key="data.validation", folder=folder)
    if validation.classes == classes:
        return
    unknown = [name for name in validation.classes if name not in classes]
    missing = [name for name in classes if name not in validation.classes]
    if unknown:
        difference = f"{unknown[0]!r}, which is not one of them"
    elif missing:
        difference = f"none called {missing[0]!r}"
    else:
        difference = "the same classes in another order"
    raise DataError(
        f"data.validation={folder}: expected the {len(classes)} classes of the training, got {difference}; "
        "fix: shard both splits with one command"
    )


def _check_labels(index: ShardIndex, *, key: str, folder: str) -> None:
    label_R = index.column("label")
    if not index.classes or (label_R < 0).all():
        raise DataError(
            f"{key}={folder}: expected labelled videos, got no labels; "
            "fix: shard a source with one folder per class, or a csv with the columns path,label"
        )
    bad = np.flatnonzero((label_R < 0) | (label_R >= len(index.classes)))
    if len(bad):
        sample = index.sample(int(bad[0]))
        raise DataError(
            f"{key}={folder}: expected labels from 0 to {len(index.classes) - 1}, got others in {len(bad)} "
            f"of {len(index)} videos, first {sample.key} ({sample.name}) with label {sample.label}; "
            "fix: label or remove them, and shard again"
        )
