"""Checks of the data of a fine-tuning run before it starts."""

from collections.abc import Mapping
from itertools import combinations

from kinemae.data_tools.command import DataError, log
from kinemae.data_tools.index import ShardIndex, dictionary_encode_column, find_leaks
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
