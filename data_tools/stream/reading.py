"""From a row of the index to frames: what training and evaluation have in common."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor

from data_tools.index import Sample, ShardIndex
from data_tools.stream.decode import BadVideo, decode_at
from data_tools.stream.shards import read_video
from data_tools.stream.times import last_frame_s


def read_frames(index: ShardIndex, sample: Sample, instants_s: Sequence[float]) -> Tensor:
    """The sample's frames_TCHW at the given instants.

    Raises:
        BadVideo: the bytes or the video are not what the index says.
    """
    video = read_video(index, sample)
    return decode_at(video, instants_s, last_frame_s=last_frame_s(sample.frames, sample.duration_s))


@contextmanager
def naming(sample: Sample) -> Iterator[None]:
    """Let a bad video pass to whoever skips it; anything else stops the run and names the sample.

    Raises:
        RuntimeError: something failed that is no property of the video.
    """
    try:
        yield
    except BadVideo:
        raise
    except Exception as error:
        raise RuntimeError(f"sample {sample.key} ({sample.name}) cannot be read: {error!r}") from error
