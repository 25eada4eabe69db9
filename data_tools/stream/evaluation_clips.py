"""Multi-view evaluation: all views of a video in one item, or in several items if the video is long."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, groupby

import numpy as np
import torch
from torch import Tensor

from kinemae.data_tools.index import Sample, ShardIndex
from kinemae.data_tools.stream.batch import SkippedClip
from kinemae.data_tools.stream.container import BadVideo
from kinemae.data_tools.stream.frame_sampling import (
    ClipConfig,
    SlidingClips,
    check_stride,
    evaluation_timestamps_s,
    last_frame_s,
    sliding_clip_count,
)
from kinemae.data_tools.stream.read_ahead import Request
from kinemae.data_tools.stream.video_reader import (
    decode_sample,
    decode_video,
    described,
    error_context,
    read_requests,
    read_video,
    skip_quarantined,
    whole_file,
)
from kinemae.data_tools.stream.views import View, crop_views, evaluation_views
from kinemae.data_tools.stream.yuv_planes import YuvFrame, yuv_frames_in_sequence
from kinemae.data_tools.stream.yuv_to_rgb import Pixels, YuvClips, split_in_time
from kinemae.data_tools.unread import check_is_read

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
        check_stride(index, clip)
        self.index = index
        self.positions = positions
        self.clip = clip
        self.temporal_clips = temporal_clips
        self.spatial_crops = spatial_crops
        bytes_per_clip = spatial_crops * clip.frames * clip.size**2 * 3 // 2
        self._clips_per_part = max(_BYTES_PER_ITEM // bytes_per_clip, 1)
        self._ends: np.ndarray | None = None
        if not isinstance(temporal_clips, int):
            check_is_read(index, "sliding clips")
            self._ends = np.cumsum([self._parts(self._clip_count(index.sample(each))) for each in positions])

    def __len__(self) -> int:
        if self._ends is None:
            return len(self.positions)
        return int(self._ends[-1]) if len(self._ends) else 0

    def read(
        self, number: int, *, quarantined: Mapping[str, str], on_sample: Callable[[str], None]
    ) -> EvaluationItem:
        """Read the views of a video, or of a part of it; see `worker.ItemReader`.

        The frames of a video that was not read before are counted by decoding.
        """
        position, part, parts = self.locate(number)
        sample, video = self.index.sample(position), None
        clips_s = [[math.nan] * self.clip.frames] * self._clip_count(sample)  # if they stay unknown
        if sample.is_read:
            clips_s = self._clips_s(sample, part, parts)
        try:
            skip_quarantined(sample.key, quarantined, on_sample)
            with error_context(sample):
                if not sample.is_read:
                    video = read_video(self.index, sample)
                    sample = described(sample, video, is_counted=True)
                    clips_s = self._clips_s(sample, part, parts)
                return self._item(number, clips_s, self._views(sample, clips_s, video))
        except BadVideo as error:
            return self._item(number, clips_s, str(error))

    def upcoming(self, number: int) -> list[Request]:
        """See `worker.ItemReader`."""
        return read_requests([(self.index, self.index.sample(self.locate(number)[0]), None)])

    def read_in_sequence(self, numbers: Sequence[int]) -> Iterator[EvaluationItem]:
        """Read items of one video that is a whole file, which is decoded once from its beginning.

        Memory holds one frame and the items that are not complete.

        Args:
            numbers: in ascending order.
        """
        position, _, parts = self.locate(numbers[0])
        sample = self.index.sample(position)
        clips = {number: self._clips_s(sample, self.locate(number)[1], parts) for number in numbers}
        order = sorted(
            (time_s, number, place)
            for number, clips_s in clips.items()
            for place, time_s in enumerate(chain(*clips_s))
        )
        missing = {number: len(clips_s) * self.clip.frames for number, clips_s in clips.items()}
        pixels: dict[int, YuvClips] = {}
        try:
            with error_context(sample):
                for frame, positions in self._frames_in_sequence(sample, [time_s for time_s, _, _ in order]):
                    shown = sorted(order[position][1:] for position in positions)
                    for number, places in groupby(shown, key=lambda each: each[0]):
                        at = [place for _, place in places]
                        pixels.setdefault(number, self._empty(clips[number]))
                        crop_views([(frame, at)], self._choose, pixels[number])
                        missing[number] -= len(at)
                        if not missing[number]:
                            yield self._item(number, clips.pop(number), pixels.pop(number))
        except BadVideo as error:
            for number, clips_s in clips.items():
                yield self._item(number, clips_s, str(error))

    def view_count(self, number: int) -> int:
        """Number of views of an item."""
        position, part, parts = self.locate(number)
        count = self._clip_count(self.index.sample(position))
        return ((part + 1) * count // parts - part * count // parts) * self.spatial_crops

    def locate(self, number: int) -> tuple[int, int, int]:
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

    def _clips_s(self, sample: Sample, part: int, parts: int) -> list[list[float]]:
        """Timestamps of the clips of a part."""
        count = self._clip_count(sample)
        clips_s = evaluation_timestamps_s(sample, self.clip, temporal_clips=count)
        return clips_s[part * count // parts : (part + 1) * count // parts]

    def _views(self, sample: Sample, clips_s: list[list[float]], video: bytes | None) -> YuvClips:
        """Decode clips at once, see `_empty`; `video` is None if it was not read yet."""
        pixels, times_s = self._empty(clips_s), list(chain(*clips_s))
        if video is None:
            frames = decode_sample(self.index, sample, times_s)
        else:
            frames = decode_video(video, sample, times_s)
        crop_views(frames, self._choose, pixels)
        return pixels

    def _frames_in_sequence(
        self, sample: Sample, ascending_s: list[float]
    ) -> Iterator[tuple[YuvFrame, Sequence[int]]]:
        file = whole_file(self.index, sample)
        assert file is not None
        last_s = last_frame_s(sample.frames, sample.duration_s)
        return yuv_frames_in_sequence(file, ascending_s, last_frame_s=last_s)

    def _empty(self, clips_s: Sequence[Sequence[float]]) -> YuvClips:
        """The clips as one long clip for each crop; `_item` splits them."""
        return YuvClips.empty(self.spatial_crops, len(clips_s) * self.clip.frames, self.clip.size)

    def _choose(self, height: int, width: int) -> list[View]:
        return evaluation_views(height, width, self.spatial_crops)

    def _item(self, number: int, clips_s: list[list[float]], pixels: YuvClips | str) -> EvaluationItem:
        """Make an item of its clips, or of the reason why they could not be read."""
        position, part, parts = self.locate(number)
        sample = self.index.sample(position)
        time_VT = torch.tensor(clips_s, dtype=torch.float64).repeat_interleave(self.spatial_crops, dim=0)
        skipped = None
        if isinstance(pixels, str):
            skipped = SkippedClip(key=sample.key, reason=pixels)
            views: Pixels = YuvClips.empty(len(time_VT), self.clip.frames, self.clip.size)
            time_VT = torch.full_like(time_VT, float("nan"))
        else:
            views = split_in_time(pixels, len(clips_s))
        return EvaluationItem(
            pixels=views,
            time_VT=time_VT,
            label=sample.label,
            key=sample.key,
            position=position,
            skipped=skipped,
            part=part,
            parts=parts,
        )
