"""Anticipation: the class of an event that begins some time after the clip's end."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from kinemae.data_tools.command import DataError, log
from kinemae.data_tools.config import require
from kinemae.data_tools.index import Sample, ShardIndex
from kinemae.data_tools.stream.frame_sampling import ClipConfig, frames_between
from kinemae.finetune.labels.segments import SEGMENT_COLUMN, iterate_events, read_segments
from kinemae.finetune.labels.target_flips import TargetFlip
from kinemae.finetune.metrics.classification import is_in_top
from kinemae.finetune.tasks.base import SamplePrediction, Targets, Task
from kinemae.finetune.tasks.classification import Classification

_TOP = 5
_WITHOUT_CLIP = "events_without_clip"  # a column of the events, and a key of the scores


class Anticipation(Task):
    """Classify each event from a clip that ends before it, as in EPIC-KITCHENS-100 (arXiv 2006.13256).

    Every event is one sample of training and of evaluation. Its clip ends `gap_s` before the event's start.
    An event that begins too early in its video has no clip; these events are counted, logged and not used.

    Args:
        segments: column of the events, see `kinemae.finetune.labels.segments`.
        gap_s: seconds from the end of the clip to the start of the event; 1 in EPIC-KITCHENS-100.
        observed_s: seconds from which the frames of the clip are taken; null: the duration of the clip. It is
            required with clip.sampling=uniform.
        label_smoothing: fraction of the target distribution spread over all classes.
    """

    def __init__(
        self,
        *,
        segments: str,
        gap_s: float = 1.0,
        observed_s: float | None = None,
        label_smoothing: float = 0.0,
    ):
        super().__init__()
        require(math.isfinite(gap_s) and gap_s >= 0, "task.args.gap_s", "be 0 or more", gap_s)
        is_number = isinstance(observed_s, int | float) and observed_s > 0
        require(observed_s is None or is_number, "task.args.observed_s", "be null or above 0", observed_s)
        self.segments = segments
        self.gap_s = gap_s
        self.observed_s = observed_s
        self.classification = Classification(label=SEGMENT_COLUMN, label_smoothing=label_smoothing)

    def view(self, index: ShardIndex, clip: ClipConfig, *, key: str) -> ShardIndex:
        if index.sample(0).window_s is not None:
            raise ValueError(
                "data.segments: expected null for the task anticipation, whose samples are events anyway; "
                "fix: remove data.segments"
            )
        events = list(iterate_events(read_segments(index, self.segments, key=key)))
        windows = [self._window_s(index.sample(each.position), each.start_s, clip) for each in events]
        kept = [(event, window) for event, window in zip(events, windows, strict=True) if window is not None]
        early = len(events) - len(kept)
        if not kept:
            raise DataError(
                f"{key}: expected events with a clip that ends task.args.gap_s={self.gap_s:g} s before them, "
                f"got {early} events that begin too early in their videos; fix: a shorter gap or clip"
            )
        if early:
            log.warning("%s: %d of %d events begin too early for a clip", key, early, len(events))
        return index.view(
            [event.position for event, _ in kept],
            window_s=[window for _, window in kept],
            columns={
                SEGMENT_COLUMN: [event.label for event, _ in kept],
                _WITHOUT_CLIP: [early] * len(kept),
            },
        )

    def _window_s(self, sample: Sample, start_s: float, clip: ClipConfig) -> tuple[float, float] | None:
        """Return the time window of a clip before an event, on frame borders; None if it begins before 0."""
        fps = sample.frames / sample.duration_s
        frames = None if clip.sampling == "uniform" else round(clip.frames * frames_between(sample, clip))
        if clip.fps is not None:
            frames = max(1, round(clip.frames * fps / clip.fps))
        if self.observed_s is not None:
            observed = round(self.observed_s * fps)
            if frames is not None and observed < frames:
                raise ValueError(
                    f"task.args.observed_s: expected at least the clip's {frames / fps:g} s in {sample.key}, "
                    f"got {self.observed_s:g}; fix: null, or a shorter clip"
                )
            frames = observed
        if frames is None:
            raise ValueError(
                "task.args.observed_s: expected a number of seconds with clip.sampling=uniform, got null"
            )
        end = min(math.floor((start_s - self.gap_s) * fps + 1e-6), sample.frames)
        begin = end - max(1, frames)
        return None if begin < 0 else (begin / fps, end / fps)

    def fit(self, train: ShardIndex, *, key: str) -> None:
        self.classification.fit(train, key=key)
        self.classes = self.classification.classes

    def state(self) -> dict[str, Any]:
        return self.classification.state()

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.classification.load_state(state)
        self.classes = self.classification.classes

    @property
    def outputs(self) -> int:
        return self.classification.outputs

    def read(self, index: ShardIndex, *, key: str) -> Targets:
        targets = self.classification.read(index, key=key)
        return EventTargets(targets, without_clip=int(index.column(_WITHOUT_CLIP)[0]))

    def loss(self, output: Tensor, targets: Mapping[str, Tensor]) -> Tensor:
        return self.classification.loss(output, targets)

    def has_target(self, targets: Mapping[str, Tensor]) -> Tensor:
        return self.classification.has_target(targets)

    def target_flip(self, pairs: Sequence[Sequence[str]]) -> TargetFlip:
        return self.classification.target_flip(pairs)

    def sample_classes(self, targets: Targets) -> np.ndarray | None:
        assert isinstance(targets, EventTargets)
        return self.classification.sample_classes(targets.of_events)

    def train_metrics(self, output: Tensor, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return self.classification.train_metrics(output, targets)

    def predict(self, output: Tensor) -> Tensor:
        return self.classification.predict(output)

    def score(self, predictions: Sequence[SamplePrediction], targets: Targets) -> dict[str, Any]:
        assert isinstance(targets, EventTargets)
        scores = self.classification.score(predictions, targets.of_events)
        label_R = np.array([targets.of_sample(each.position)["label"] for each in predictions])
        probability_RY = np.stack([each.values["prediction"] for each in predictions if each.values])
        return {
            **scores,
            "mean_class_recall_at_5": mean_class_recall(probability_RY, label_R, k=_TOP),
            "floor": {**scores["floor"], "mean_class_recall_at_5": min(1.0, _TOP / len(np.unique(label_R)))},
            _WITHOUT_CLIP: targets.without_clip,
        }


class EventTargets:
    """Classes of events.

    Attributes:
        of_events: the targets of the events that have a clip.
        without_clip: number of events that begin too early for a clip, in the whole data set also for a part.
    """

    def __init__(self, of_events: Targets, *, without_clip: int):
        self.of_events = of_events
        self.without_clip = without_clip

    def of_clips(self, sample_B: Tensor, time_BT: Tensor) -> dict[str, Tensor]:
        return self.of_events.of_clips(sample_B, time_BT)

    def of_sample(self, position: int) -> dict[str, Any]:
        return self.of_events.of_sample(position)


def mean_class_recall(probability_RY: np.ndarray, label_R: np.ndarray, *, k: int) -> float:
    """Average over the classes that occur: the fraction of their samples with the true class in the top k."""
    is_hit_R = is_in_top(probability_RY, label_R, k=k)
    return float(np.mean([is_hit_R[label_R == label].mean() for label in np.unique(label_R)]))
