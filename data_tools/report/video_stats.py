"""Statistics of one video: a strip of frames, motion, contrast and a perceptual hash."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageOps
from torch import Tensor

from kinemae.data_tools.command import DataError
from kinemae.data_tools.index import Sample, ShardIndex, open_index
from kinemae.data_tools.storage.location import Location, StorageUnavailable
from kinemae.data_tools.stream.decode import decode_at
from kinemae.data_tools.stream.frame_sampling import last_frame_s
from kinemae.data_tools.stream.video_reader import read_video

TIMESTAMPS = 8  # spread over the whole video
STRIP_FRAMES = 4  # every second timestamp, in the strip and in the hash
_STRIP_HEIGHT = 112
_STRIP_WIDTHS = (40, 220)  # of one picture: other aspect ratios get black borders
_JPEG_QUALITY = 72
_GREY_SIDE = 32  # small, so that camera noise averages out
_SEEK_GAP_S = 4.0  # with larger gaps each frame is decoded after a seek
_SEEK_PIXELS = 1 << 23  # larger frames are decoded one at a time, to save memory


@dataclass(frozen=True, kw_only=True)
class VideoStats:
    """Statistics of a video.

    Attributes:
        reason: why the video cannot be read; then all other fields are empty.
        motion: mean absolute difference of successive small grey frames, in grey levels of 0 to 255.
        contrast: standard deviation of all grey values; near 0 for a blank video.
        hash: `frame_stats.HASH_BITS` bits that change little when a video is re-encoded or resized.
        strip: JPEG of `STRIP_FRAMES` frames side by side; `strip_size` is its size in pixels.
    """

    reason: str = ""
    motion: float = 0.0
    contrast: float = 0.0
    hash: bytes = b""
    strip: bytes = b""
    strip_size: tuple[int, int] = (0, 0)


def compute_stats(job: tuple[Location, int]) -> VideoStats:
    """Compute the statistics of a sample, given by its data set and its position."""
    folder, position = job
    index = _opened(folder)
    try:
        return _compute(index, index.sample(position))
    except StorageUnavailable:
        raise
    except DataError as error:
        return VideoStats(reason=" ".join(str(error).split()))


def failed_stats(job: tuple[Location, int], reason: str) -> VideoStats:
    """The statistics of a video that crashed or blocked its process."""
    return VideoStats(reason=reason)


def timestamps_s(duration_s: float) -> list[float]:
    """Timestamps in the middle of equal segments of the video."""
    return [(number + 0.5) / TIMESTAMPS * duration_s for number in range(TIMESTAMPS)]


def difference_hash(greys: Sequence[Image.Image]) -> bytes:
    """Compute dHash: 64 bits per image, each set if a grid cell is brighter than its left neighbour."""
    grids = [np.asarray(grey.resize((9, 8), Image.Resampling.BOX), dtype=np.int16) for grey in greys]
    return np.packbits([grid[:, 1:] > grid[:, :-1] for grid in grids]).tobytes()


@lru_cache(maxsize=8)
def _opened(folder: Location) -> ShardIndex:
    return open_index(folder)


def _compute(index: ShardIndex, sample: Sample) -> VideoStats:
    pictures = _decode(read_video(index, sample), sample)
    greys = [picture.convert("L") for picture in pictures]
    shrunk = (grey.resize((_GREY_SIDE, _GREY_SIDE), Image.Resampling.BOX) for grey in greys)
    small = np.stack([np.asarray(grey, dtype=np.float32) for grey in shrunk])
    strip = _strip(pictures[:: TIMESTAMPS // STRIP_FRAMES], sample)
    return VideoStats(
        motion=float(np.abs(np.diff(small, axis=0)).mean()),
        contrast=float(small.std()),
        hash=difference_hash(greys[:: TIMESTAMPS // STRIP_FRAMES]),
        strip=_jpeg(strip),
        strip_size=strip.size,
    )


def _decode(video: bytes, sample: Sample) -> list[Image.Image]:
    """Decode the frames at all timestamps, reduced to about the size that the strip needs."""
    all_s = timestamps_s(sample.duration_s)
    end_s = last_frame_s(sample.frames, sample.duration_s)
    is_long = sample.duration_s > _SEEK_GAP_S * TIMESTAMPS
    if is_long or sample.width * sample.height > _SEEK_PIXELS:
        found = (decode_at(video, [timestamp_s], last_frame_s=end_s)[0] for timestamp_s in all_s)
        return [_to_image(frame_CHW) for frame_CHW in found]
    return [_to_image(frame_CHW) for frame_CHW in decode_at(video, all_s, last_frame_s=end_s)]


def _to_image(frame_CHW: Tensor) -> Image.Image:
    picture = Image.fromarray(frame_CHW.permute(1, 2, 0).contiguous().numpy())
    shrink = max(picture.height // (2 * _STRIP_HEIGHT), 1)
    return picture.reduce(shrink) if shrink > 1 else picture


def _strip(pictures: Sequence[Image.Image], sample: Sample) -> Image.Image:
    width = round(_STRIP_HEIGHT * sample.width / sample.height)
    width = min(max(width, _STRIP_WIDTHS[0]), _STRIP_WIDTHS[1])
    strip = Image.new("RGB", (width * len(pictures), _STRIP_HEIGHT))
    for number, picture in enumerate(pictures):
        strip.paste(ImageOps.pad(picture, (width, _STRIP_HEIGHT)), (number * width, 0))
    return strip


def _jpeg(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=_JPEG_QUALITY, optimize=True)
    return file.getvalue()
