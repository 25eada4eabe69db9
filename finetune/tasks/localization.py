"""Temporal localization: start, end and class of the events of a video."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kinemae.data_tools.config import require
from kinemae.data_tools.index import ShardIndex
from kinemae.data_tools.stream.frame_sampling import ClipConfig
from kinemae.finetune.heads.pyramid import GEOMETRY
from kinemae.finetune.labels.segments import check_holds, class_names, read_segments
from kinemae.finetune.labels.target_flips import TargetFlip, swapped_classes
from kinemae.finetune.metrics.localization import Detections, localization_metrics
from kinemae.finetune.tasks.base import NothingToScore, SamplePrediction, Targets, Task
from kinemae.finetune.temporal.detections import ClipTimes, decode, soft_nms
from kinemae.finetune.temporal.localization_loss import (
    assign_positions,
    distance_iou_loss,
    sigmoid_focal_loss,
)
from kinemae.finetune.temporal.segment_targets import SegmentTargets

_TIOUS = (0.3, 0.4, 0.5, 0.6, 0.7)


class Localization(Task):
    """Detect segments with an anchor-free head, as ActionFormer (arXiv 2202.07925) does.

    The loss of a clip is a focal loss of the classes of all positions, divided by the number of its positive
    positions (at least 1), plus the mean distance-IoU loss of these. The paper divides by a moving average
    over batches, which would make the loss of a clip depend on others.

    Args:
        segments: column of the segments, see `finetune/labels/segments.py`; [] is a video without events, and
            a sample without a cell has no loss and no score.
        tious: thresholds of the score, in ascending order.
        centre_radius: a position is positive up to this many of its sizes from the centre of a segment.
        min_visible: segments of which a clip shows a smaller fraction are neither positive nor background.
        nms_sigma: of the Gaussian soft-NMS; the lower, the stronger is the suppression.
        min_score: detections with a lower probability are dropped.
        max_detections: number of detections per video.
    """

    output = "pyramid"
    metric = "map"
    mixes = False
    majority: int = 0

    def __init__(  # noqa: PLR0913 - keyword-only
        self,
        *,
        segments: str,
        tious: Sequence[float] = _TIOUS,
        centre_radius: float = 1.5,
        min_visible: float = 0.5,
        nms_sigma: float = 0.5,
        min_score: float = 0.001,
        max_detections: int = 200,
    ):
        super().__init__()
        is_list = isinstance(tious, Sequence) and all(isinstance(each, int | float) for each in tious)
        is_right = is_list and len(tious) > 0 and all(0 < each <= 1 for each in tious)
        is_right = is_right and list(tious) == sorted(set(tious))
        require(is_right, "task.args.tious", "be ascending numbers in (0, 1]", tious)
        require(centre_radius > 0, "task.args.centre_radius", "be above 0", centre_radius)
        require(0 <= min_visible <= 1, "task.args.min_visible", "lie in [0, 1]", min_visible)
        is_sigma = nms_sigma > 0 and math.isfinite(nms_sigma)
        require(is_sigma, "task.args.nms_sigma", "be above 0", nms_sigma)
        require(0 <= min_score < 1, "task.args.min_score", "lie in [0, 1)", min_score)
        require(max_detections >= 1, "task.args.max_detections", "be at least 1", max_detections)
        self.segments = segments
        self.tious = tuple(tious)
        self.centre_radius = centre_radius
        self.min_visible = min_visible
        self.nms_sigma = nms_sigma
        self.min_score = min_score
        self.max_detections = max_detections

    def view(self, index: ShardIndex, clip: ClipConfig, *, key: str) -> ShardIndex:
        check_holds(clip)
        return index

    def fit(self, train: ShardIndex, *, key: str) -> None:
        segments = read_segments(train, self.segments, key=key)
        self.classes = class_names(segments)
        counts = Counter(label for each in segments if each is not None for label in each.labels)
        self.majority = max(range(len(self.classes)), key=lambda number: counts[self.classes[number]])

    def state(self) -> dict[str, Any]:
        return {**super().state(), "majority": self.majority}

    def load_state(self, state: Mapping[str, Any]) -> None:
        super().load_state(state)
        self.majority = int(state["majority"])

    def read(self, index: ShardIndex, *, key: str) -> SegmentTargets:
        return SegmentTargets.read(index, self.segments, self.classes, min_visible=self.min_visible, key=key)

    def loss(self, output: Tensor, targets: Mapping[str, Tensor]) -> Tensor:
        class_loss_B, distance_loss_B = self._losses(output, targets)
        return class_loss_B + distance_loss_B

    def has_target(self, targets: Mapping[str, Tensor]) -> Tensor:
        return targets["is_annotated_B"] > 0

    def target_flip(self, pairs: Sequence[Sequence[str]]) -> TargetFlip:
        return TargetFlip(renumber={"class_BE": swapped_classes(self.classes, pairs)})

    def train_metrics(self, output: Tensor, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        class_loss_B, distance_loss_B = self._losses(output.detach(), targets)
        return {"class_loss": class_loss_B, "distance_loss": distance_loss_B}

    def _losses(self, output_BPX: Tensor, targets: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        logits_BPY, distance_BP2 = output_BPX[..., :-GEOMETRY], output_BPX[..., -4:-2]
        centre_BP, size_BP = output_BPX[..., -2], output_BPX[..., -1]
        assigned = assign_positions(
            centre_BP, size_BP, targets["segment_BE2"], targets["class_BE"], radius=self.centre_radius
        )
        count_B = assigned.is_positive_BP.sum(dim=1).clamp(min=1)
        one_hot_BPY = torch.nn.functional.one_hot(assigned.class_BP, logits_BPY.shape[2])
        focal_BP = sigmoid_focal_loss(logits_BPY, one_hot_BPY * assigned.is_positive_BP[..., None]).sum(dim=2)
        class_loss_B = (focal_BP * assigned.is_counted_BP).sum(dim=1) / count_B
        distance_loss_BP = distance_iou_loss(distance_BP2, assigned.distance_BP2) * assigned.is_positive_BP
        is_annotated_B = targets["is_annotated_B"]
        return class_loss_B * is_annotated_B, distance_loss_BP.sum(dim=1) / count_B * is_annotated_B

    def predict(self, output: Tensor) -> Tensor:
        output = output.double()
        return torch.cat([output[..., :-GEOMETRY].sigmoid(), output[..., -GEOMETRY:]], dim=-1)

    def combine(self, prediction_V: Tensor, time_VT: Tensor) -> dict[str, np.ndarray]:
        """Merge the detections of all clips by soft-NMS: "time_s" (N, 2), "score" and "class", best first."""
        views = zip(prediction_V.cpu().numpy(), time_VT.double().numpy(), strict=True)
        found = [
            decode(prediction_PX, ClipTimes.of(time_T), min_score=self.min_score)
            for prediction_PX, time_T in views
        ]
        merged = soft_nms(
            Detections.join(found), sigma=self.nms_sigma, min_score=self.min_score, most=self.max_detections
        )
        return {"time_s": merged.time_N2, "score": merged.score_N, "class": merged.class_N}

    def score(self, predictions: Sequence[SamplePrediction], targets: Targets) -> dict[str, Any]:
        assert isinstance(targets, SegmentTargets)
        detections, truths, floors = [], [], []
        for each in predictions:
            if each.values is None or targets.segments[each.position] is None:
                continue
            values = each.values
            detections.append(Detections(values["time_s"], values["score"], values["class"]))
            truths.append(targets.of_video(each.position))
            whole_12 = np.array([[0.0, targets.duration_R[each.position]]])
            floors.append(Detections(whole_12, np.ones(1), np.array([self.majority])))
        if not sum(len(truth.score_N) for truth in truths):
            raise NothingToScore(
                f"expected readable validation videos with segments in the column {self.segments}, got none; "
                "fix: annotate some of them"
            )
        floor = localization_metrics(floors, truths, self.classes, tious=self.tious)
        return {
            **localization_metrics(detections, truths, self.classes, tious=self.tious),
            "segments": sum(len(truth.score_N) for truth in truths),
            "floor": {name: floor[name] for name in ("map", "map_at", "average_recall_at")},
        }
