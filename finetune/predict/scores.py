"""Predictions over time: scores of windows, the summary of a video, and segments."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, NamedTuple, cast

import numpy as np
from torch import Tensor

from kinemae.data_tools.files import to_json_lines
from kinemae.finetune.heads.pyramid import GEOMETRY
from kinemae.finetune.predict.config import DENSE_THRESHOLD, DETECTION_THRESHOLD
from kinemae.finetune.tasks.base import Task
from kinemae.finetune.tasks.dense import Dense
from kinemae.finetune.tasks.multi_label import MultiLabel
from kinemae.finetune.tasks.multi_task import MultiTask
from kinemae.finetune.tasks.ordinal import Ordinal, median_classes
from kinemae.finetune.tasks.regression import Regression
from kinemae.finetune.tasks.retrieval import Retrieval

_DECIMALS = 6  # of times in seconds


class Segment(NamedTuple):
    """A detected event: start and end in seconds, name of its class and probability."""

    start_s: float
    end_s: float
    label: str
    score: float


@dataclass(frozen=True, kw_only=True)
class VideoPrediction:
    """The prediction of one video.

    Attributes:
        video: its name.
        info: properties of the video: frames, duration_s, width, height and crc32 of its bytes.
        columns: names of the scores: classes, columns of a regression, or NAME/CLASS of several tasks.
        start_R, end_R: the time in seconds that each row of scores is of: a window, or a step of a task with
            scores over time.
        score_RX: the scores.
        summary_X: scores of the whole video: for a task with one output per clip those of `evaluate`, the
            mean over the windows; for a task over time their mean; for detections the highest.
        predicted: name of the predicted class; list of the names above the threshold for classes that may
            occur together; one entry per task for several tasks; None for numbers.
        segments: detected events, for tasks over time.
        views: number of windows times crops.
    """

    video: str
    info: dict[str, Any]
    columns: tuple[str, ...]
    start_R: np.ndarray
    end_R: np.ndarray
    score_RX: np.ndarray
    summary_X: np.ndarray
    predicted: Any = None
    segments: list[Segment] | None = None
    views: int = 0
    model: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """Format as JSON, one key per line; `video` and `info` come first."""
        content: dict[str, Any] = {
            "video": self.video,
            "info": self.info,
            "model": self.model,
            "views": self.views,
            "predicted": self.predicted,
            "summary": dict(zip(self.columns, self.summary_X.tolist(), strict=True)),
            "segments": [each._asdict() for each in self.segments or ()],
            "columns": self.columns,
            "start_s": self.start_R.round(_DECIMALS).tolist(),
            "end_s": self.end_R.round(_DECIMALS).tolist(),
            "scores": self.score_RX.tolist(),
        }
        if self.segments is None:
            del content["segments"]
        return to_json_lines(content)

    @staticmethod
    def from_json(text: str) -> "VideoPrediction":
        """Read the result of `to_json`."""
        content = json.loads(text)
        segments = content.get("segments")
        return VideoPrediction(
            **{name: content[name] for name in ("video", "info", "predicted", "views", "model")},
            columns=tuple(content["columns"]),
            start_R=np.array(content["start_s"]),
            end_R=np.array(content["end_s"]),
            score_RX=np.array(content["scores"]),
            summary_X=np.array(list(content["summary"].values())),
            segments=None if segments is None else [Segment(**each) for each in segments],
        )


def score_columns(task: Task) -> tuple[str, ...]:
    """Return the names of a task's scores."""
    if isinstance(task, MultiTask):
        return tuple(f"{name}/{each}" for name, sub in _parts(task) for each in score_columns(sub))
    if isinstance(task, Regression):
        return tuple(task.labels)
    if isinstance(task, Retrieval):
        return tuple(map(str, range(task.outputs)))
    return task.classes


def score_video(
    task: Task,
    output_V: Tensor,
    time_VT: Tensor,
    *,
    crops: int,
    threshold: float | None = None,
    duration_s: float = math.inf,
) -> dict[str, Any]:
    """Turn the head's output for all views of a video into the scores of a `VideoPrediction`.

    Args:
        time_VT: times of the frames; the crops of a window are consecutive.
        threshold: see `PredictConfig`.
        duration_s: end of the video, at which windows end.

    Returns:
        Its arguments from `columns` to `views`.
    """
    prediction_V = task.predict(output_V)
    values = task.combine(prediction_V, time_VT)
    start_R, end_R, score_RX, summary_X = _rows(task, prediction_V, time_VT, values, crops)
    end_R = end_R.clip(max=duration_s)
    segments = None
    if task.output == "sequence":
        segments = list(dense_segments(task, score_RX, start_R, end_R, threshold))
    elif task.output == "pyramid":
        segments = list(detections(task, values, threshold))
    return {
        "columns": score_columns(task),
        "start_R": start_R,
        "end_R": end_R,
        "score_RX": score_RX,
        "summary_X": summary_X,
        "predicted": decide(task, summary_X, threshold),
        "segments": segments,
        "views": len(output_V),
    }


def _rows(
    task: Task, prediction_V: Tensor, time_VT: Tensor, values: dict[str, np.ndarray], crops: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return begin, end and scores of the rows of a `VideoPrediction`, and its summary."""
    start_R, end_R = window_times(time_VT[::crops])
    if task.output == "sequence":
        half_s = float(values["step_s"]) / 2
        start_R, end_R = (values["time_s"] - half_s).clip(min=0), values["time_s"] + half_s
        return start_R, end_R, values["prediction"], values["prediction"].mean(axis=0)
    if task.output == "pyramid":
        best_VY = prediction_V[..., :-GEOMETRY].amax(dim=1)
        score_RX = best_VY.unflatten(0, (-1, crops)).amax(dim=1).cpu().numpy()
        return start_R, end_R, score_RX, score_RX.max(axis=0)
    views = zip(prediction_V.split(crops), time_VT.split(crops), strict=True)
    return start_R, end_R, np.stack([joined(task.combine(*each)) for each in views]), joined(values)


def joined(values: dict[str, np.ndarray]) -> np.ndarray:
    """Join the predictions of all tasks of `Task.combine`."""
    return np.concatenate([value for name, value in values.items() if name.endswith("prediction")])


def window_times(time_VT: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Return start and end of windows in seconds, from the times in the middle of their frames."""
    time_WT = time_VT.double().numpy()
    steps_WX = np.diff(time_WT, axis=1)
    half_s = float(steps_WX.max()) / 2 if steps_WX.size else 0.0
    return (time_WT.min(axis=1) - half_s).clip(min=0), time_WT.max(axis=1) + half_s


def decide(task: Task, score_X: np.ndarray, threshold: float | None) -> Any:
    """Return the predicted class or classes; see `VideoPrediction.predicted`."""
    if isinstance(task, MultiTask):
        ends = np.cumsum([len(score_columns(sub)) for _, sub in _parts(task)])[:-1]
        parts = zip(_parts(task), np.split(score_X, ends), strict=True)
        return {name: decide(sub, part_X, threshold) for (name, sub), part_X in parts}
    if isinstance(task, Regression | Retrieval):
        return None
    if isinstance(task, MultiLabel) or task.output == "pyramid" or _is_multi(task):
        limit = _threshold(task, threshold)
        return [name for name, score in zip(task.classes, score_X, strict=True) if score >= limit]
    number = median_classes(score_X[None])[0] if isinstance(task, Ordinal) else score_X.argmax()
    return task.classes[int(number)]


def dense_segments(
    task: Task, score_RX: np.ndarray, start_R: np.ndarray, end_R: np.ndarray, threshold: float | None
) -> Iterator[Segment]:
    """Yield the runs of rows with the same class, without the background, ordered by their begin."""
    if _is_multi(task):
        is_on_RX = score_RX >= _threshold(task, threshold)
    else:
        is_on_RX = score_RX.argmax(axis=1)[:, None] == np.arange(1, score_RX.shape[1])
        score_RX = score_RX[:, 1:]
    names = task.classes[len(task.classes) - score_RX.shape[1] :]
    found = []
    for number, name in enumerate(names):
        for is_on, rows in groupby(range(len(is_on_RX)), key=lambda row: bool(is_on_RX[row, number])):
            run = list(rows)
            if is_on:
                score = float(score_RX[run, number].mean())
                found.append(_segment(start_R[run[0]], end_R[run[-1]], name, score))
    yield from sorted(found)


def detections(task: Task, values: dict[str, np.ndarray], threshold: float | None) -> Iterator[Segment]:
    """Yield the detections of a localization above the threshold, best first."""
    limit = _threshold(task, threshold)
    for (start, end), score, number in zip(values["time_s"], values["score"], values["class"], strict=True):
        if score >= limit:
            yield _segment(start, end, task.classes[int(number)], float(score))


def _segment(start_s: float, end_s: float, label: str, score: float) -> Segment:
    return Segment(round(float(start_s), _DECIMALS), round(float(end_s), _DECIMALS), label, score)


def _parts(task: MultiTask) -> list[tuple[str, Task]]:
    return [(name, cast(Task, sub)) for name, sub in task.tasks.items()]


def _is_multi(task: Task) -> bool:
    return isinstance(task, Dense) and task.multi_label


def _threshold(task: Task, threshold: float | None) -> float:
    default = DETECTION_THRESHOLD if task.output == "pyramid" else DENSE_THRESHOLD
    return default if threshold is None else threshold
