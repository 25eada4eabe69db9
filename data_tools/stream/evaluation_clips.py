"""Multi-view evaluation: all views of a video in one item, or in several items if the video is long."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kinemae.data_tools.index import Sample, ShardIndex
from kinemae.data_tools.stream.batch import SkippedClip
from kinemae.data_tools.stream.container import BadVideo
from kinemae.data_tools.stream.frame_sampling import (
    ClipConfig,
    SlidingClips,
    evaluation_timestamps_s,
    sliding_clip_count,
)
from kinemae.data_tools.stream.video_reader import decode_sample, error_context, skip_quarantined
from kinemae.data_tools.stream.views import View, crop_views, evaluation_views
from kinemae.data_tools.stream.yuv_to_rgb import Pixels, YuvClips, split_in_time

_BYTES_PER_ITEM = 64 << 20  # of planes; sliding clips that need more are divided, so memory stays bounded


@dataclass(frozen=True, kw_only=True)
class EvaluationItem:
    """Views of one video: all of them, or a part of its sliding clips.

    Attributes:
        pixels: the V views as clips: temporal clips times spatial crops; the crops of a clip are consecutive.
        time_VT: float64, timestamps of the frames of each view in seconds; NaN if skipped.
        position: position of the sample in the index.
        skipped: the reason why the video could not be read; then the views are black.
        part, parts: the number of this part, and how many parts the video has. A process gets all parts of a
            video, one after the other.
    """

    pixels: Pixels
    time_VT: Tensor
    label: int
    key: str
    position: int
    skipped: SkippedClip | None = None
    part: int = 0
    parts: int = 1


class EvaluationVideos:
    """The videos at some positions of an index, each with temporal clips times spatial crops.

    Args:
        temporal_clips: clips per video, or sliding clips, whose number depends on the video.
    """

    def __init__(
        self,
        index: ShardIndex,
        positions: Sequence[int],
        *,
        clip: ClipConfig,
        temporal_clips: int | SlidingClips,
        spatial_crops: int,
    ):
        self.index = index
        self.positions = positions
        self.clip = clip
        self.temporal_clips = temporal_clips
        self.spatial_crops = spatial_crops
        bytes_per_clip = spatial_crops * clip.frames * clip.size**2 * 3 // 2
        self._clips_per_part = max(_BYTES_PER_ITEM // bytes_per_clip, 1)
        self._ends: np.ndarray | None = None
        if not isinstance(temporal_clips, int):
            self._ends = np.cumsum([self._parts(self._clip_count(index.sample(each))) for each in positions])

    def __len__(self) -> int:
        if self._ends is None:
            return len(self.positions)
        return int(self._ends[-1]) if len(self._ends) else 0

    def read(
        self, number: int, *, quarantined: Mapping[str, str], on_sample: Callable[[str], None]
    ) -> EvaluationItem:
        """Read the views of a video, or of a part of it; see `worker.ItemReader`."""
        position, part, parts = self._locate(number)
        sample = self.index.sample(position)
        count = self._clip_count(sample)
        chosen = range(count)[part * count // parts : (part + 1) * count // parts]
        skipped = None
        try:
            skip_quarantined(sample.key, quarantined, on_sample)
            pixels, time_VT = self._views(sample, count, chosen)
        except BadVideo as error:
            skipped = SkippedClip(key=sample.key, reason=str(error))
            views = len(chosen) * self.spatial_crops
            pixels = YuvClips.empty(views, self.clip.frames, self.clip.size)
            time_VT = torch.full((views, self.clip.frames), float("nan"), dtype=torch.float64)
        return EvaluationItem(
            pixels=pixels,
            time_VT=time_VT,
            label=sample.label,
            key=sample.key,
            position=position,
            skipped=skipped,
            part=part,
            parts=parts,
        )

    def _locate(self, number: int) -> tuple[int, int, int]:
        """Position of an item's sample, number of the part, and parts of the video."""
        if self._ends is None:
            return self.positions[number], 0, 1
        place = int(np.searchsorted(self._ends, number, side="right"))
        begin = int(self._ends[place - 1]) if place else 0
        return self.positions[place], number - begin, int(self._ends[place]) - begin

    def _clip_count(self, sample: Sample) -> int:
        if isinstance(self.temporal_clips, int):
            return self.temporal_clips
        return sliding_clip_count(sample, self.clip, self.temporal_clips)

    def _parts(self, clips: int) -> int:
        return -(-clips // self._clips_per_part)

    def _views(self, sample: Sample, count: int, chosen: range) -> tuple[Pixels, Tensor]:
        """Decode the chosen ones of `count` clips at once, as one long clip for each crop, and split it."""
        with error_context(sample):
            clips = evaluation_timestamps_s(sample, self.clip, temporal_clips=count)
            clips = clips[chosen.start : chosen.stop]
            timestamps_s = [timestamp_s for clip in clips for timestamp_s in clip]
            pixels = YuvClips.empty(self.spatial_crops, len(timestamps_s), self.clip.size)

            def choose(height: int, width: int) -> list[View]:
                return evaluation_views(height, width, self.spatial_crops)

            crop_views(decode_sample(self.index, sample, timestamps_s), choose, pixels)
            time_VT = torch.tensor(clips, dtype=torch.float64).repeat_interleave(self.spatial_crops, dim=0)
            return split_in_time(pixels, len(clips)), time_VT
