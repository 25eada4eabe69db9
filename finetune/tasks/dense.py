"""Dense labels: one class, or several, at every time of a video."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from kinemae.data_tools.command import DataError
from kinemae.data_tools.config import require
from kinemae.data_tools.index import ShardIndex
from kinemae.data_tools.stream.frame_sampling import ClipConfig
from kinemae.finetune.labels.segments import check_holds, class_names, read_segments
from kinemae.finetune.labels.target_flips import TargetFlip, swapped_classes
from kinemae.finetune.metrics.multilabel import multilabel_metrics
from kinemae.finetune.metrics.segmentation import edit_score, segmental_f1
from kinemae.finetune.tasks.base import NothingToScore, SamplePrediction, Targets, Task
from kinemae.finetune.temporal.stitching import resample, slice_times, stitch
from kinemae.finetune.temporal.time_labels import BACKGROUND, TimeLabels

_OVERLAPS = (10, 25, 50)  # of `segmental_f1` in percent


class Dense(Task):
    """Labels over time, from segments: action segmentation, or detection of states.

    Args:
        segments: column of the segments, see `finetune/labels/segments.py`. A time outside all segments has
            the class "background"; a sample without a cell has no labels.
        multi_label: classes are independent and may overlap in time (sigmoid, no background class); otherwise
            there is one class at each time (softmax), and segments of different classes must not overlap.
        resolution: "slice": one output per time slice. "frame": the outputs are interpolated to the frames of
            the clip.
        slice_target: target of a slice whose frames differ: the "fraction" of each class, or the "majority".
        score_fps: labels per second at which videos are scored; null: at every frame.
    """

    output = "sequence"
    metric = "frame_map"

    def __init__(
        self,
        *,
        segments: str,
        multi_label: bool = False,
        resolution: str = "slice",
        slice_target: str = "fraction",
        score_fps: float | None = None,
    ):
        super().__init__()
        require(resolution in ("slice", "frame"), "task.args.resolution", "be slice or frame", resolution)
        known = ("fraction", "majority")
        require(slice_target in known, "task.args.slice_target", "be fraction or majority", slice_target)
        is_rate = score_fps is None or (isinstance(score_fps, int | float) and score_fps > 0)
        require(is_rate, "task.args.score_fps", "be null or above 0", score_fps)
        self.segments = segments
        self.multi_label = multi_label
        self.resolution = resolution
        self.slice_target = slice_target
        self.score_fps = score_fps

    def view(self, index: ShardIndex, clip: ClipConfig, *, key: str) -> ShardIndex:
        check_holds(clip)
        return index

    def fit(self, train: ShardIndex, *, key: str) -> None:
        names = class_names(read_segments(train, self.segments, key=key))
        if not self.multi_label:
            names = (BACKGROUND, *(name for name in names if name != BACKGROUND))
            if len(names) == 1:
                raise DataError(
                    f"{key}: expected segments of a class other than {BACKGROUND} in the column "
                    f"{self.segments}, got none; fix: choose another column"
                )
        self.classes = names

    def read(self, index: ShardIndex, *, key: str) -> TimeLabels:
        return TimeLabels.read(index, self.segments, self.classes, multi_label=self.multi_label, key=key)

    def loss(self, output: Tensor, targets: Mapping[str, Tensor]) -> Tensor:
        output_BtY, target_BtY = self._at_one_resolution(output, targets["label_BTY"])
        if self.multi_label:
            loss_Bt = functional.binary_cross_entropy_with_logits(
                output_BtY, target_BtY, reduction="none"
            ).mean(dim=2)
        else:
            loss_Bt = -(target_BtY * output_BtY.log_softmax(dim=2)).sum(dim=2)
        return loss_Bt.mean(dim=1) * targets["is_annotated_B"]

    def has_target(self, targets: Mapping[str, Tensor]) -> Tensor:
        return targets["is_annotated_B"] > 0

    def target_flip(self, pairs: Sequence[Sequence[str]]) -> TargetFlip:
        return TargetFlip(permute={"label_BTY": swapped_classes(self.classes, pairs)})

    def train_metrics(self, output: Tensor, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        output_BtY, target_BtY = self._at_one_resolution(output, targets["label_BTY"])
        if self.multi_label:
            is_right_Bt = ((output_BtY > 0) == (target_BtY >= 0.5)).float().mean(dim=2)
        else:
            is_right_Bt = (output_BtY.argmax(dim=2) == target_BtY.argmax(dim=2)).float()
        return {"accuracy": is_right_Bt.mean(dim=1)}

    def _at_one_resolution(self, output_BtY: Tensor, label_BTY: Tensor) -> tuple[Tensor, Tensor]:
        """Bring outputs and targets to the resolution of the task."""
        if self.resolution == "frame":
            frames = label_BTY.shape[1]
            resized_BYT = functional.interpolate(output_BtY.mT, size=frames, mode="linear")
            return resized_BYT.mT, label_BTY
        target_BtY = label_BTY.unflatten(1, (output_BtY.shape[1], -1)).mean(dim=2)
        if self.slice_target == "majority" and self.multi_label:
            target_BtY = (target_BtY >= 0.5).to(target_BtY.dtype)
        elif self.slice_target == "majority":
            target_BtY = functional.one_hot(target_BtY.argmax(dim=2), self.outputs).to(target_BtY.dtype)
        return output_BtY, target_BtY

    def predict(self, output: Tensor) -> Tensor:
        return output.double().sigmoid() if self.multi_label else output.double().softmax(dim=2)

    def combine(self, prediction_V: Tensor, time_VT: Tensor) -> dict[str, np.ndarray]:
        """Stitch the clips of a video.

        Returns:
            "prediction": probabilities, one row for each time in "time_s". "step_s": seconds between the
            outputs of one clip.
        """
        values = list(prediction_V.cpu().numpy())
        times = list(slice_times(time_VT, prediction_V.shape[1]))
        if self.resolution == "frame":
            frame_times = list(time_VT.double().numpy())
            clips = zip(times, values, frame_times, strict=True)
            values = [resample(time_t, values_tY, at_T) for time_t, values_tY, at_T in clips]
            times = frame_times
        steps_V = time_VT.diff(dim=1).max(dim=1).values if time_VT.shape[1] > 1 else torch.zeros(1)
        step = float(steps_V.max()) * time_VT.shape[1] / len(times[0])
        time_N, prediction_NY = stitch(times, values)
        return {"prediction": prediction_NY, "time_s": time_N, "step_s": np.array(step)}

    def score(self, predictions: Sequence[SamplePrediction], targets: Targets) -> dict[str, Any]:
        assert isinstance(targets, TimeLabels)
        probabilities, labels, frames = [], [], 0
        for each in predictions:
            if each.values is None or not targets.is_annotated(each.position):
                continue
            time_F, label_FY = targets.of_frames(each.position, fps=self.score_fps)
            is_covered_F = _is_covered(time_F, each.values, targets.period_s(each.position))
            at_F = time_F[is_covered_F]
            probabilities.append(resample(each.values["time_s"], each.values["prediction"], at_F))
            labels.append(label_FY[is_covered_F])
            frames += len(time_F)
        if not labels:
            raise NothingToScore(
                f"expected readable validation videos with a cell in the column {self.segments}, got none; "
                "fix: annotate some of them, with [] for a video without events"
            )
        scores = self._metrics(probabilities, labels)
        if scores["frame_map"] is None:
            raise NothingToScore(
                f"expected frames inside segments of the column {self.segments}, got none in the clips of "
                f"{len(labels)} scored videos; fix: evaluate.sliding=true, or more annotated videos"
            )
        constant = [np.broadcast_to(np.eye(self.outputs)[0], label_FY.shape) for label_FY in labels]
        if self.multi_label:
            constant = [np.zeros(label_FY.shape) for label_FY in labels]
        floor = self._metrics(constant, labels)
        covered = sum(map(len, labels))
        return {
            **scores,
            "frames": covered,
            "coverage": covered / frames,
            "floor": {name: value for name, value in floor.items() if isinstance(value, float)},
        }

    def _metrics(self, probabilities: Sequence[np.ndarray], labels: Sequence[np.ndarray]) -> dict[str, Any]:
        probability_RY, label_RY = np.concatenate(probabilities), np.concatenate(labels)
        first = 0 if self.multi_label else 1
        multi = multilabel_metrics(probability_RY[:, first:], label_RY[:, first:], self.classes[first:])
        scores = {"frame_map": multi["map"], "per_class_ap": multi["per_class_ap"]}
        if self.multi_label:
            return {**scores, "f1_micro": multi["f1_micro"], "f1_macro": multi["f1_macro"]}
        predicted, true = ([each.argmax(axis=1) for each in rows] for rows in (probabilities, labels))
        edits = [edit_score(*pair, ignore=0) for pair in zip(predicted, true, strict=True)]
        f1 = {
            f"f1_at_{overlap}": segmental_f1(predicted, true, overlap=overlap / 100, ignore=0)
            for overlap in _OVERLAPS
        }
        accuracy = float(np.mean(np.concatenate(predicted) == np.concatenate(true)))
        return {**scores, "frame_accuracy": accuracy, "edit": float(np.mean(edits)), **f1}


def _is_covered(time_F: np.ndarray, values: Mapping[str, np.ndarray], period_s: float) -> np.ndarray:
    """Return whether each time is at most half a step from an output."""
    time_N = values["time_s"]
    after_F = np.searchsorted(time_N, time_F).clip(max=len(time_N) - 1)
    before_F = (after_F - 1).clip(min=0)
    distance_F = np.minimum(np.abs(time_F - time_N[before_F]), np.abs(time_F - time_N[after_F]))
    reach_s = max(float(values["step_s"]), period_s) / 2 * (1 + 1e-6)
    is_near_F: np.ndarray = distance_F <= reach_s
    return is_near_F
