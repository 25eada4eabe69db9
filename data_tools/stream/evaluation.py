"""Evaluation videos: every view of a video together, so that each video is counted once."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from data_tools.index import Sample, ShardIndex, open_index
from data_tools.stream.augment import evaluation_views
from data_tools.stream.batch import SkippedClip
from data_tools.stream.decode import BadVideo
from data_tools.stream.reading import naming, read_frames
from data_tools.stream.times import ClipConfig, evaluation_instants_s


@dataclass(frozen=True, kw_only=True)
class EvaluationItem:
    """All views of one video.

    Attributes:
        views_VCTHW: uint8; V counts temporal clips times spatial crops, the crops of one clip side by side.
        position: the sample's place in the index.
        skipped: why the video could not be read, in which case the views are zeros.
    """

    views_VCTHW: Tensor
    label: int
    key: str
    position: int
    skipped: SkippedClip | None = None


class EvaluationVideos(Dataset[EvaluationItem]):
    """The videos at some positions of an index, each with its temporal clips times spatial crops."""

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

    def __getitem__(self, number: int) -> EvaluationItem:
        position = self.positions[number]
        sample = self.index.sample(position)
        skipped = None
        try:
            views_VCTHW = self._views(sample)
        except BadVideo as error:
            skipped = SkippedClip(key=sample.key, reason=str(error))
            size, views = self.clip.size, self.temporal_clips * self.spatial_crops
            views_VCTHW = torch.zeros((views, 3, self.clip.frames, size, size), dtype=torch.uint8)
        return EvaluationItem(
            views_VCTHW=views_VCTHW, label=sample.label, key=sample.key, position=position, skipped=skipped
        )

    def _views(self, sample: Sample) -> Tensor:
        # One clip at a time: at full resolution all clips of a video together may not fit.
        with naming(sample):
            instants = evaluation_instants_s(
                sample.frames, sample.duration_s, self.clip, temporal_clips=self.temporal_clips
            )
            clips = (read_frames(self.index, sample, instants_s) for instants_s in instants)
            return torch.cat(
                [evaluation_views(frames, self.clip.size, self.spatial_crops) for frames in clips]
            )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "index": self.index.folder}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, index=open_index(state["index"]))
