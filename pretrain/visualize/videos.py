"""Videos to look at, and their windows: clips one after the other over the whole video."""

import hashlib
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from kinemae.data_tools.command import DataError, log
from kinemae.data_tools.index import Sample, ShardIndex, open_index
from kinemae.data_tools.randomness import generator
from kinemae.data_tools.stream.container import BadVideo
from kinemae.data_tools.stream.evaluation_clips import EvaluationVideos
from kinemae.data_tools.stream.frame_sampling import (
    ClipConfig,
    SlidingClips,
    evaluation_timestamps_s,
    sliding_clip_count,
)
from kinemae.data_tools.stream.video_files import data_set_in, open_video_files
from kinemae.data_tools.stream.windows import read_windows
from kinemae.data_tools.stream.yuv_to_rgb import to_rgb


@dataclass(frozen=True, kw_only=True)
class Video:
    """A video of an index, in windows of clips; a uniformly sampled clip is one window."""

    index: ShardIndex
    position: int
    clip: ClipConfig

    @cached_property
    def sample(self) -> Sample:
        """The row of the index."""
        return self.index.sample(self.position)

    @property
    def folder_name(self) -> str:
        """The key as the name of a folder; a changed key ends with a digest, so that names stay unique."""
        key = self.sample.key
        name = re.sub(r"[^\w.-]+", "_", key).strip(".")
        return name if name == key else f"{name[:60]}-{hashlib.sha256(key.encode()).hexdigest()[:8]}"

    @cached_property
    def time_VT(self) -> Tensor:
        """Timestamps of the frames of all windows in seconds, float64."""
        timestamps_s = evaluation_timestamps_s(self.sample, self.clip, temporal_clips=self._count)
        return torch.tensor(timestamps_s, dtype=torch.float64)

    def evenly(self, count: int) -> list[int]:
        """Numbers of some windows, evenly spaced from the first to the last."""
        places = torch.linspace(0, self._count - 1, min(count, self._count), dtype=torch.float64)
        return places.round().long().tolist()

    def nearest(self, time_s: float) -> int:
        """Number of the window with the frame nearest to a time."""
        return int((self.time_VT - time_s).abs().amin(dim=1).argmin())

    def windows(self, numbers: Collection[int] | None = None) -> Iterator[tuple[int, Tensor]]:
        """Number and clip_1CTHW, uint8 RGB, of all or some windows in order.

        Raises:
            BadVideo: the video cannot be read.
        """
        sliding: int | SlidingClips = 1 if self.clip.sampling == "uniform" else SlidingClips()
        videos = EvaluationVideos(
            self.index, [self.position], clip=self.clip, temporal_clips=sliding, spatial_crops=1
        )
        number = 0
        for item in read_windows(videos):
            if item.skipped is not None:
                raise BadVideo(item.skipped.reason)
            for place in range(len(item.pixels)):
                if numbers is None or number in numbers:
                    yield number, to_rgb(item.pixels[place : place + 1])
                number += 1

    @property
    def _count(self) -> int:
        if self.clip.sampling == "uniform":
            return 1
        return sliding_clip_count(self.sample, self.clip, SlidingClips())


def open_videos(
    source: str, clip: ClipConfig, *, keys: list[str] | None, samples: int, seed: int, out: Path
) -> tuple[list[Video], dict[str, str]]:
    """Open some videos of shards, of a folder of video files, or a single file or URL.

    Args:
        keys: the chosen samples; None for `samples` of them, drawn by the seed.
        out: folder of the pictures; the index of video files is in it.

    Returns:
        The videos, and the reasons for unreadable video files.

    Raises:
        DataError: there are no videos, or not those.
        ValueError: `out` is the source.
    """
    data_set = data_set_in(source)
    if data_set is not None:
        index, failed = open_index(data_set), {}
    else:
        files = open_video_files(source, out / "index", out=out)
        index, failed = files.index, files.failed
    if keys is None:
        order = torch.randperm(len(index), generator=generator(seed, purpose="visualize")).tolist()
        return [Video(index=index, position=each, clip=clip) for each in sorted(order[:samples])], failed
    known = {key: position for position, key in enumerate(index.column("key").tolist())}
    missing = [key for key in keys if key not in known]
    if missing:
        raise DataError(
            f"keys: expected keys of {source}, such as {next(iter(known))}, got {missing[0]}; fix: correct it"
        )
    return [Video(index=index, position=known[key], clip=clip) for key in keys], failed


def log_if_short(video: Video) -> None:
    """Warn if the video is shorter than a clip, which then repeats its last frame."""
    time_T = video.time_VT[0]
    if len(time_T) > 1 and float(time_T[-1] - time_T[-2]) == 0.0:
        log.warning("%s is shorter than a clip; its last frame is repeated", video.sample.name)
