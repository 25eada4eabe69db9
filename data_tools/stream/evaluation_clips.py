"""Evaluation videos: every view of a video together, so that each video is counted once."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from kinemae.data_tools.index import Sample, ShardIndex
from kinemae.data_tools.stream.batch import SkippedClip
from kinemae.data_tools.stream.container import BadVideo
from kinemae.data_tools.stream.frame_sampling import ClipConfig, evaluation_timestamps_s
from kinemae.data_tools.stream.video_reader import (
    check_decoder,
    decode_sample,
    empty_clips,
    error_context,
    skip_quarantined,
)
from kinemae.data_tools.stream.views import View, crop_views, evaluation_views
from kinemae.data_tools.stream.yuv_to_rgb import Pixels, split_in_time


@dataclass(frozen=True, kw_only=True)
class EvaluationItem:
    """All views of one video.

    Attributes:
        pixels: the views as clips; temporal clips times spatial crops, the crops of one clip side by side.
        position: the sample's place in the index.
        skipped: why the video could not be read, in which case the views are black.
    """

    pixels: Pixels
    label: int
    key: str
    position: int
    skipped: SkippedClip | None = None


class EvaluationVideos:
    """The videos at some positions of an index, each with its temporal clips times spatial crops."""

    def __init__(
        self,
        index: ShardIndex,
        positions: Sequence[int],
        *,
        clip: ClipConfig,
        temporal_clips: int,
        spatial_crops: int,
        decoder: str = "pyav",
    ):
        check_decoder(decoder)
        self.index = index
        self.positions = positions
        self.clip = clip
        self.temporal_clips = temporal_clips
        self.spatial_crops = spatial_crops
        self.decoder = decoder

    def __len__(self) -> int:
        return len(self.positions)

    def read(
        self, number: int, *, quarantined: Mapping[str, str], reading: Callable[[str], None]
    ) -> EvaluationItem:
        """All views of a video; see `crew_member.ItemReader`."""
        position = self.positions[number]
        sample = self.index.sample(position)
        skipped = None
        try:
            skip_quarantined(sample.key, quarantined, reading)
            pixels = self._views(sample)
        except BadVideo as error:
            skipped = SkippedClip(key=sample.key, reason=str(error))
            pixels = empty_clips(self.temporal_clips * self.spatial_crops, self.clip, decoder=self.decoder)
        return EvaluationItem(
            pixels=pixels, label=sample.label, key=sample.key, position=position, skipped=skipped
        )

    def _views(self, sample: Sample) -> Pixels:
        """All clips of the video in one decode, as one long clip for each crop, which is then cut."""
        with error_context(sample):
            clips = evaluation_timestamps_s(sample, self.clip, temporal_clips=self.temporal_clips)
            timestamps_s = [timestamp_s for clip in clips for timestamp_s in clip]
            long_clip = replace(self.clip, frames=len(timestamps_s))
            pixels = empty_clips(self.spatial_crops, long_clip, decoder=self.decoder)

            def choose(height: int, width: int) -> list[View]:
                return evaluation_views(height, width, self.spatial_crops)

            pictures = decode_sample(self.index, sample, timestamps_s, decoder=self.decoder)
            crop_views(pictures, choose, pixels)
            return split_in_time(pixels, len(clips))
