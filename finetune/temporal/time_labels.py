"""Targets of tasks with a label at every time: segments evaluated at the times of frames."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kinemae.data_tools.command import DataError
from kinemae.data_tools.index import ShardIndex
from kinemae.finetune.labels.segments import Segments, class_numbers_of, read_segments

BACKGROUND = "background"


class TimeLabels:
    """The labels of all samples of a data set at any time.

    Args:
        segments: of each sample; None for a sample without annotation.
        numbers: class of each segment.
        classes: names of the outputs; without `multi_label` the first is the background.
        duration_R, frames_R: duration in seconds and number of frames of each sample.
    """

    def __init__(
        self,
        segments: Sequence[Segments | None],
        numbers: Sequence[np.ndarray],
        classes: Sequence[str],
        *,
        multi_label: bool,
        duration_R: np.ndarray,
        frames_R: np.ndarray,
    ):
        self.segments = segments
        self.numbers = numbers
        self.classes = tuple(classes)
        self.multi_label = multi_label
        self.duration_R = duration_R
        self.frames_R = frames_R

    @staticmethod
    def read(
        index: ShardIndex, column: str, classes: Sequence[str], *, multi_label: bool, key: str
    ) -> "TimeLabels":
        """Read and check the segments of a data set.

        Raises:
            DataError: see `read_segments`; an unknown class; or, without `multi_label`, segments of different
                classes that overlap by more than a frame.
        """
        segments = read_segments(index, column, key=key)
        labels = TimeLabels(
            segments,
            class_numbers_of(segments, classes, index, column, key=key),
            classes,
            multi_label=multi_label,
            duration_R=np.array(index.column("duration_s"), dtype=np.float64),
            frames_R=np.array(index.column("frames"), dtype=np.int64),
        )
        if not multi_label:
            labels._check_disjoint(index, column, key=key)
        return labels

    def is_annotated(self, position: int) -> bool:
        """Return whether a sample has labels."""
        return self.segments[position] is not None

    def period_s(self, position: int) -> float:
        """Return the duration of a frame."""
        return float(self.duration_R[position] / self.frames_R[position])

    def at(self, position: int, time_F: np.ndarray) -> np.ndarray:
        """Return labels_FY of a sample at some times, 1 for a class that is present, float32.

        A later segment replaces an earlier one where they overlap, without `multi_label`.
        """
        label_FY = np.zeros((len(time_F), len(self.classes)), dtype=np.float32)
        if not self.multi_label:
            label_FY[:, 0] = 1
        segments = self.segments[position]
        if segments is None:
            return label_FY
        for number in np.argsort(segments.time_E2[:, 0], kind="stable"):
            start_s, end_s = segments.time_E2[number]
            inside_F = (time_F >= start_s) & (time_F < end_s)
            if not self.multi_label:
                label_FY[inside_F] = 0
            label_FY[inside_F, self.numbers[position][number]] = 1
        return label_FY

    def of_frames(self, position: int, *, fps: float | None) -> tuple[np.ndarray, np.ndarray]:
        """Return the times of a sample's frames, or of `fps` points per second, and the labels there."""
        duration_s = float(self.duration_R[position])
        points = int(self.frames_R[position]) if fps is None else max(1, round(duration_s * fps))
        time_F = (np.arange(points) + 0.5) * duration_s / points
        return time_F, self.at(position, time_F)

    def of_clips(self, sample_B: Tensor, time_BT: Tensor) -> dict[str, Tensor]:
        """See `Targets`: "label_BTY" of the frames, and "is_annotated_B", 0 for a clip without labels."""
        positions = sample_B.tolist()
        rows = [
            self.at(position, time_T) for position, time_T in zip(positions, time_BT.numpy(), strict=True)
        ]
        is_annotated = [self.is_annotated(position) for position in positions]
        return {
            "label_BTY": torch.from_numpy(np.stack(rows)),
            "is_annotated_B": torch.tensor(is_annotated, dtype=torch.float32),
        }

    def of_sample(self, position: int) -> dict[str, Any]:
        segments = self.segments[position]
        return {"segments": None if segments is None else segments.as_json()}

    def _check_disjoint(self, index: ShardIndex, column: str, *, key: str) -> None:
        for position, segments in enumerate(self.segments):
            if segments is None:
                continue
            order = np.argsort(segments.time_E2[:, 0], kind="stable")
            number_E, time_E2 = self.numbers[position][order], segments.time_E2[order]
            for row in range(1, len(order)):
                before = np.flatnonzero(number_E[:row] != number_E[row])
                overlap_s = (time_E2[before, 1] - time_E2[row, 0]).max(initial=0.0)
                if overlap_s > self.period_s(position) * (1 + 1e-6):
                    sample = index.sample(position)
                    raise DataError(
                        f"{key}: expected segments that do not overlap in the column {column}, got "
                        f"{segments.labels[order[row]]!r} at {time_E2[row, 0]:g} s in {sample.key} "
                        f"({sample.name}) before the segment of another class ends; "
                        "fix: task.args.multi_label=true, or correct them"
                    )
