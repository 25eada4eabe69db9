"""Decode a sample of videos over their whole length: static, blank and near-duplicate videos, grey frames."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from kinemae.data_tools.curation.near_duplicates import hash_words, near_duplicate_groups
from kinemae.data_tools.index import ShardIndex
from kinemae.data_tools.progress import progress
from kinemae.data_tools.randomness import generator
from kinemae.data_tools.report.sampled_videos import ReportConfig
from kinemae.data_tools.report.video_stats import STRIP_FRAMES, TIMESTAMPS, difference_hash
from kinemae.data_tools.stream.loader import ClipConfig, evaluation_loader
from kinemae.data_tools.stream.worker_setup import available_cores
from kinemae.data_tools.stream.yuv_to_rgb import to_luma

SAMPLED_VIDEOS = 1000
_SIZE = 64  # pixels, of a decoded frame
_MOTION_SIDE = 32  # small, so that sensor noise averages out
_FEW = 200  # videos that one process reads before others have started
_THRESHOLDS = ReportConfig()


@dataclass(frozen=True, kw_only=True)
class Overview:
    """Fractions of the videos of a sample.

    Attributes:
        videos: number of sampled videos.
        unreadable, static, blank: fractions of them, with the thresholds of `kinemae data report`.
        near_duplicates: fraction that is similar to another video of the sample.
        largest_group: fraction in the largest group of similar videos.
    """

    videos: int = 0
    unreadable: float = 0.0
    static: float = 0.0
    blank: float = 0.0
    near_duplicates: float = 0.0
    largest_group: float = 0.0


def draw_positions(index: ShardIndex, most: int, seed: int) -> list[int]:
    """Draw at most `most` positions, in pairs of neighbours by name.

    Neighbouring names are often parts of one recording, and a plain sample of a large set would not show it.
    """
    by_name = np.argsort(index.column("name").astype(str), kind="stable")
    if len(index) <= most:
        return sorted(by_name.tolist())
    starts = torch.randperm(len(index) // 2, generator=generator(seed, purpose="advise"))[: most // 2]
    return sorted(int(by_name[2 * start + which]) for start in starts.tolist() for which in (0, 1))


def read_luma(
    index: ShardIndex, positions: Sequence[int], clip: ClipConfig, *, what: str
) -> Iterator[tuple[int, Tensor]]:
    """Read the centre crop of a clip of each readable video as (position, luma_THW uint8)."""
    items = evaluation_loader(
        index,
        clip=clip,
        temporal_clips=1,
        spatial_crops=1,
        rank=0,
        world=1,
        workers=0 if len(positions) <= _FEW else max(available_cores() - 1, 0),
        samples=positions,
    )
    for item in progress(items, total=len(positions), what=what):
        if item.skipped is None:
            yield item.position, to_luma(item.pixels)[0]


def read_overview(index: ShardIndex, positions: Sequence[int]) -> tuple[Overview, dict[int, np.ndarray]]:
    """Read frames spread over each video.

    Returns:
        The overview, and grey_THW of each readable video by its position, for `floors`.
    """
    clip = ClipConfig(frames=TIMESTAMPS, sampling="uniform", size=_SIZE)
    grey, hashes, static, blank = {}, [], 0, 0
    for position, luma_THW in read_luma(index, positions, clip, what="look at videos"):
        grey[position] = luma_THW.numpy()
        small_THW = _shrink(luma_THW, _MOTION_SIDE)
        static += float(small_THW.diff(dim=0).abs().mean()) < _THRESHOLDS.static_threshold
        is_blank = float(small_THW.std()) < _THRESHOLDS.blank_threshold
        blank += is_blank
        if not is_blank:
            every = luma_THW[:: TIMESTAMPS // STRIP_FRAMES].numpy()
            hashes.append(difference_hash([Image.fromarray(frame_HW) for frame_HW in every]))
    groups = [*near_duplicate_groups(hash_words(hashes), _THRESHOLDS.near_duplicate_bits)]
    readable = max(len(grey), 1)
    overview = Overview(
        videos=len(positions),
        unreadable=1 - len(grey) / len(positions),
        static=static / readable,
        blank=blank / readable,
        near_duplicates=sum(map(len, groups)) / readable,
        largest_group=max(map(len, groups), default=0) / readable,
    )
    return overview, grey


def _shrink(luma_THW: Tensor, side: int) -> Tensor:
    """Average pixels, as float32."""
    return F.adaptive_avg_pool2d(luma_THW[None].float(), side)[0]
