"""Open the labelled data sets of a fine-tuning run with the samples of its task."""

from kinemae.data_tools.index import ShardIndex, open_index
from kinemae.data_tools.stream.frame_sampling import ClipConfig, check_stride
from kinemae.data_tools.unread import check_is_read
from kinemae.finetune.config import FinetuneData
from kinemae.finetune.labels.segments import segments_as_samples
from kinemae.finetune.tasks.base import Task


def open_labelled(
    data: FinetuneData, name: str, *, task: Task, clip: ClipConfig, check_shards: bool = True
) -> ShardIndex:
    """Open a data set and return the samples that the task needs, see `Task.view`.

    Args:
        name: "train" or "validation".
        clip: the clips of the run.
        check_shards: see `open_index`; one process of a job checks the shards.

    Raises:
        DataError: the folder is no data set, its segments are invalid, or the task cannot use it.
        ValueError: the task, or the stored videos, do not support these clips.
        StorageUnavailable: the storage did not respond for data.outage_s.
    """
    folder = getattr(data, name)
    opened = open_index(folder, cache=data.cache, check_shards=check_shards, outage_s=data.outage_s)
    index = data.selected(name, opened)
    check_stride(index, clip)
    key = f"data.{name}={folder}"
    check_is_read(index, key)
    if data.segments is not None:
        index = segments_as_samples(index, data.segments, key=key)
    return task.view(index, clip, key=key)
