"""What one video looks like: a strip of pictures, how much moves, and a hash of what is to be seen."""

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

INSTANTS = 8  # spread over the whole video
PICTURES = 4  # every second instant, in the strip and in the hash
HASH_BITS = PICTURES * 64
_STRIP_HEIGHT = 112
_STRIP_WIDTHS = (40, 220)  # of one picture: a very flat or very tall video gets black borders
_JPEG_QUALITY = 72
_GREY_SIDE = 32  # so small that the noise of a camera averages out
_ALONE_GAP_S = 4.0  # instants farther apart are sought one by one, to decode less of a long video
_ALONE_PIXELS = 1 << 23  # frames so large are held one at a time


@dataclass(frozen=True, kw_only=True)
class Look:
    """What was seen of a video.

    Attributes:
        reason: why it cannot be read; all else is empty then.
        motion: mean absolute difference of successive small grey frames, in grey levels of 0 to 255.
        contrast: standard deviation of all grey values; near 0 for a blank video.
        hash: `HASH_BITS` bits that stay alike when a video is encoded anew or resized.
        strip: JPEG of `PICTURES` frames side by side, with its size in pixels.
    """

    reason: str = ""
    motion: float = 0.0
    contrast: float = 0.0
    hash: bytes = b""
    strip: bytes = b""
    strip_size: tuple[int, int] = (0, 0)


def look_at(job: tuple[Location, int]) -> Look:
    """Look at one sample, given by its data set and its position there."""
    folder, position = job
    index = _opened(folder)
    try:
        return _look(index, index.sample(position))
    except StorageUnavailable:
        raise
    except DataError as error:
        return Look(reason=" ".join(str(error).split()))


def failed(job: tuple[Location, int], reason: str) -> Look:
    """The report entry of a video that crashed or blocked the process."""
    return Look(reason=reason)


def timestamps_s(duration_s: float) -> list[float]:
    """The middles of equal parts of the video."""
    return [(number + 0.5) / INSTANTS * duration_s for number in range(INSTANTS)]


def difference_hash(greys: Sequence[Image.Image]) -> bytes:
    """Of each picture, whether a cell of a coarse grid is brighter than the one to its left: 64 bits."""
    grids = [np.asarray(grey.resize((9, 8), Image.Resampling.BOX), dtype=np.int16) for grey in greys]
    return np.packbits([grid[:, 1:] > grid[:, :-1] for grid in grids]).tobytes()


@lru_cache(maxsize=8)
def _opened(folder: Location) -> ShardIndex:
    return open_index(folder)


def _look(index: ShardIndex, sample: Sample) -> Look:
    pictures = _pictures(read_video(index, sample), sample)
    greys = [picture.convert("L") for picture in pictures]
    small = np.stack([np.asarray(_shrunk(grey), dtype=np.float32) for grey in greys])
    strip = _strip(pictures[:: INSTANTS // PICTURES], sample)
    return Look(
        motion=float(np.abs(np.diff(small, axis=0)).mean()),
        contrast=float(small.std()),
        hash=difference_hash(greys[:: INSTANTS // PICTURES]),
        strip=_jpeg(strip),
        strip_size=strip.size,
    )


def _pictures(video: bytes, sample: Sample) -> list[Image.Image]:
    """The frames at all instants, shrunk to little more than the strip needs."""
    wanted_s = timestamps_s(sample.duration_s)
    end_s = last_frame_s(sample.frames, sample.duration_s)
    is_long = sample.duration_s > _ALONE_GAP_S * INSTANTS
    if is_long or sample.width * sample.height > _ALONE_PIXELS:
        found = (decode_at(video, [timestamp_s], last_frame_s=end_s)[0] for timestamp_s in wanted_s)
        return [_picture(frame_CHW) for frame_CHW in found]
    return [_picture(frame_CHW) for frame_CHW in decode_at(video, wanted_s, last_frame_s=end_s)]


def _picture(frame_CHW: Tensor) -> Image.Image:
    picture = Image.fromarray(frame_CHW.permute(1, 2, 0).contiguous().numpy())
    shrink = max(picture.height // (2 * _STRIP_HEIGHT), 1)
    return picture.reduce(shrink) if shrink > 1 else picture


def _shrunk(grey: Image.Image) -> Image.Image:
    return grey.resize((_GREY_SIDE, _GREY_SIDE), Image.Resampling.BOX)


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
