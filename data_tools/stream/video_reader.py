"""From a row of the index to pictures: what training and evaluation have in common."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch

from kinemae.data_tools.command import Stopped
from kinemae.data_tools.config import require
from kinemae.data_tools.index import Sample, ShardIndex
from kinemae.data_tools.storage.location import StorageError
from kinemae.data_tools.stream import decode_torchcodec, yuv_planes
from kinemae.data_tools.stream.container import BadVideo
from kinemae.data_tools.stream.frame_sampling import ClipConfig, last_frame_s
from kinemae.data_tools.stream.shards import read_video
from kinemae.data_tools.stream.yuv_planes import YuvFrame
from kinemae.data_tools.stream.yuv_to_rgb import Pixels, YuvClips

# What `data.decoder` names.
DECODERS = {"pyav": yuv_planes.yuv_frames_at, "torchcodec": decode_torchcodec.yuv_frames_at}


def check_decoder(decoder: str) -> None:
    """Refuse a value of `data.decoder` that cannot be used here.

    Raises:
        ValueError: there is no such decoder, or its package is not installed.
    """
    require(decoder in DECODERS, "data.decoder", f"be {' or '.join(DECODERS)}", decoder)
    if decoder == "torchcodec":
        decode_torchcodec.require_torchcodec()


def empty_clips(clips: int, clip: ClipConfig, *, decoder: str, rgb: bool = False) -> Pixels:
    """Black clips to be filled: RGB, or of the kind that the decoder gives."""
    if decoder == "pyav" and not rgb:
        return YuvClips.empty(clips, clip.frames, clip.size)
    shape = (clips, clip.frames, clip.size, clip.size, 3)
    return torch.zeros(shape, dtype=torch.uint8).permute(0, 4, 1, 2, 3)


def decode_sample(
    index: ShardIndex, sample: Sample, timestamps_s: Sequence[float], *, decoder: str
) -> Iterator[tuple[YuvFrame, list[int]]]:
    """The sample's pictures at the given instants, as they come, with their places among the instants.

    Raises:
        BadVideo: the bytes or the video are not what the index says.
    """
    yuv_frames_at = DECODERS[decoder]
    video = read_video(index, sample)
    return yuv_frames_at(video, timestamps_s, last_frame_s=last_frame_s(sample.frames, sample.duration_s))


def skip_quarantined(key: str, quarantined: Mapping[str, str], reading: Callable[[str], None]) -> None:
    """Announce a sample that is about to be read, unless it must not be touched.

    Raises:
        BadVideo: it is quarantined, and why.
    """
    if key in quarantined:
        raise BadVideo(quarantined[key])
    reading(key)


@contextmanager
def error_context(sample: Sample) -> Iterator[None]:
    """Let a bad video pass to whoever skips it; anything else stops the run and names the sample.

    Raises:
        StorageError: the storage cannot be read now, or refuses what is asked of it.
        Stopped: a stop was asked for while the storage was waited for.
        RuntimeError: something failed that is no property of the video.
    """
    try:
        yield
    except (BadVideo, StorageError, Stopped):
        raise
    except Exception as error:
        raise RuntimeError(f"sample {sample.key} ({sample.name}) cannot be read: {error!r}") from error
