"""Multi-view evaluation: all views of a video in one item, so that each video counts once."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kinemae.data_tools.index import Sample, ShardIndex
from kinemae.data_tools.stream.batch import SkippedClip
from kinemae.data_tools.stream.container import BadVideo
from kinemae.data_tools.stream.frame_sampling import ClipConfig, evaluation_timestamps_s
from kinemae.data_tools.stream.video_reader import decode_sample, error_context, skip_quarantined
from kinemae.data_tools.stream.views import View, crop_views, evaluation_views
from kinemae.data_tools.stream.yuv_to_rgb import Pixels, YuvClips, split_in_time


@dataclass(frozen=True, kw_only=True)
class EvaluationItem:
    """All views of one video.

    Attributes:
        pixels: the V views as clips: temporal clips times spatial crops; the crops of a clip are consecutive.
        time_VT: float64, timestamps of the frames of each view in seconds; NaN if skipped.
        position: position of the sample in the index.
        skipped: the reason why the video could not be read; then the views are black.
    """

    pixels: Pixels
    time_VT: Tensor
    label: int
    key: str
    position: int
    skipped: SkippedClip | None = None


class EvaluationVideos:
    """The videos at some positions of an index, each with temporal clips times spatial crops."""

    def __init__(
        self,
        index: ShardIndex,
        positions: Sequence[int],
        *,
        clip: ClipConfig,
        temporal_clips: int,
        spatial_crops: int,
    ):
        self.index = index
        self.positions = positions
        self.clip = clip
        self.temporal_clips = temporal_clips
        self.spatial_crops = spatial_crops

    def __len__(self) -> int:
        return len(self.positions)

    def read(
        self, number: int, *, quarantined: Mapping[str, str], on_sample: Callable[[str], None]
    ) -> EvaluationItem:
        """Read all views of a video; see `worker.ItemReader`."""
        position = self.positions[number]
        sample = self.index.sample(position)
        skipped = None
        try:
            skip_quarantined(sample.key, quarantined, on_sample)
            pixels, time_VT = self._views(sample)
        except BadVideo as error:
            skipped = SkippedClip(key=sample.key, reason=str(error))
            clips = self.temporal_clips * self.spatial_crops
            pixels = YuvClips.empty(clips, self.clip.frames, self.clip.size)
            time_VT = torch.full((clips, self.clip.frames), float("nan"), dtype=torch.float64)
        return EvaluationItem(
            pixels=pixels,
            time_VT=time_VT,
            label=sample.label,
            key=sample.key,
            position=position,
            skipped=skipped,
        )

    def _views(self, sample: Sample) -> tuple[Pixels, Tensor]:
        """Decode all clips of a video at once, as one long clip for each crop, and split it."""
        with error_context(sample):
            clips = evaluation_timestamps_s(sample, self.clip, temporal_clips=self.temporal_clips)
            timestamps_s = [timestamp_s for clip in clips for timestamp_s in clip]
            pixels = YuvClips.empty(self.spatial_crops, len(timestamps_s), self.clip.size)

            def choose(height: int, width: int) -> list[View]:
                return evaluation_views(height, width, self.spatial_crops)

            crop_views(decode_sample(self.index, sample, timestamps_s), choose, pixels)
            time_VT = torch.tensor(clips, dtype=torch.float64).repeat_interleave(self.spatial_crops, dim=0)
            return split_in_time(pixels, len(clips)), time_VT
