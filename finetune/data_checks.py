"""Checks of the data of a fine-tuning run before it starts."""

from kinemae.data_tools.command import DataError
from kinemae.data_tools.index import ShardIndex
from kinemae.finetune.config import FinetuneConfig


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
