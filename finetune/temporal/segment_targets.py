"""Targets of localization: the segments of each clip."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kinemae.data_tools.index import ShardIndex
from kinemae.finetune.labels.segments import Segments, class_numbers_of, read_segments
from kinemae.finetune.metrics.localization import Detections
from kinemae.finetune.temporal.detections import ClipTimes
from kinemae.finetune.temporal.localization_loss import IGNORED, NO_SEGMENT


class SegmentTargets:
    """The segments of all samples of a data set.

    Args:
        segments: of each sample; None for a sample without annotation.
        numbers: class of each segment.
        duration_R: duration in seconds of each sample.
        min_visible: segments of which a clip shows a smaller fraction are ignored.
    """

    def __init__(
        self,
        segments: Sequence[Segments | None],
        numbers: Sequence[np.ndarray],
        *,
        duration_R: np.ndarray,
        min_visible: float,
    ):
        self.segments = segments
        self.numbers = numbers
        self.duration_R = duration_R
        self.min_visible = min_visible
        self.most = max(1, *(len(each or ()) for each in segments))

    @staticmethod
    def read(
        index: ShardIndex, column: str, classes: Sequence[str], *, min_visible: float, key: str
    ) -> "SegmentTargets":
        """Read and check the segments of a data set.

        Raises:
            DataError: see `read_segments` and `class_numbers_of`.
        """
        segments = read_segments(index, column, key=key)
        return SegmentTargets(
            segments,
            class_numbers_of(segments, classes, index, column, key=key),
            duration_R=np.array(index.column("duration_s"), dtype=np.float64),
            min_visible=min_visible,
        )

    def of_clips(self, sample_B: Tensor, time_BT: Tensor) -> dict[str, Tensor]:
        """See `Targets`.

        Returns:
            "segment_BE2": start and end as fractions of the clip, limited to it. "class_BE": their classes,
            NO_SEGMENT or IGNORED. "is_annotated_B": 0 for a clip without annotation.
        """
        segment_BE2 = np.zeros((len(sample_B), self.most, 2), dtype=np.float32)
        class_BE = np.full((len(sample_B), self.most), NO_SEGMENT, dtype=np.int64)
        positions = sample_B.tolist()
        for row, position in enumerate(positions):
            segments, time_T = self.segments[position], time_BT[row].numpy()
            if segments is None or not len(segments) or np.isnan(time_T).any():
                continue
            times = ClipTimes.of(time_T)
            shown_E2 = segments.time_E2.clip(times.time_X[0], times.time_X[-1])
            length_E, shown_E = np.diff(segments.time_E2)[:, 0], np.diff(shown_E2)[:, 0]
            is_enough_E = (shown_E > 0) & (shown_E >= self.min_visible * length_E)
            class_E = np.where(is_enough_E, self.numbers[position], IGNORED)
            class_BE[row, : len(segments)] = np.where(shown_E > 0, class_E, NO_SEGMENT)
            segment_BE2[row, : len(segments)] = times.fractions(shown_E2)
        is_annotated = [self.segments[position] is not None for position in positions]
        return {
            "segment_BE2": torch.from_numpy(segment_BE2),
            "class_BE": torch.from_numpy(class_BE),
            "is_annotated_B": torch.tensor(is_annotated, dtype=torch.float32),
        }

    def of_video(self, position: int) -> Detections:
        """Return the segments of a sample, with scores of 1."""
        segments = self.segments[position]
        assert segments is not None, "a sample without annotation has no targets"
        return Detections(segments.time_E2, np.ones(len(segments)), self.numbers[position])

    def of_sample(self, position: int) -> dict[str, Any]:
        segments = self.segments[position]
        return {"segments": None if segments is None else segments.as_json()}
