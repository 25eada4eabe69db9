"""Config of validation, and decisions from its history: the best step and early stopping.

All decisions are functions of the history, so an interrupted run decides as an uninterrupted one.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kinemae.data_tools.config import require
from kinemae.finetune.metrics import direction

MOST_BY_DEFAULT = 20
DEFAULT_FRACTION = 0.2


@dataclass(frozen=True, kw_only=True)
class ValidateConfig:
    """Validation during training.

    Attributes:
        every_epochs: epochs between validations, may be a fraction; 0 for none during training; null: 1, or
            more if a run would validate more than 20 times. The last step is always validated.
        every_steps: alternative to `every_epochs`.
        videos: largest number of videos, selected by the seed; 0 for all.
        fraction: fraction of data.train to hold out for validation, in whole groups; null: 0.2 without
            data.validation, otherwise 0.
        metric: the metric by which the best model is selected; null: the task's.
        patience: stop after this many validations in a row without an improvement; 0 for never.
        min_delta: smallest improvement for `patience`.
        pause_after: stop the process after this many validations, with a checkpoint and exit code 75; a
            repeated command with another value continues. 0 for never.
        temporal_clips: clips per video, evenly spaced.
        spatial_crops: 1 (the centre) or 3 (both ends and the centre of the longer side).
    """

    every_epochs: float | None = None
    every_steps: int | None = None
    videos: int = 0
    fraction: float | None = None
    metric: str | None = None
    patience: int = 0
    min_delta: float = 0.0
    pause_after: int = 0
    temporal_clips: int = 1
    spatial_crops: int = 1

    def __post_init__(self) -> None:
        epochs, steps = self.every_epochs, self.every_steps
        require(epochs is None or epochs >= 0, "validate.every_epochs", "be null or 0 or more", epochs)
        require(steps is None or steps >= 1, "validate.every_steps", "be null or at least 1", steps)
        has_one = epochs is None or steps is None
        require(has_one, "validate.every_steps", "be null if validate.every_epochs is set", steps)
        require(self.videos >= 0, "validate.videos", "be 0 (all) or more", self.videos)
        is_fraction = self.fraction is None or 0 <= self.fraction < 1
        require(is_fraction, "validate.fraction", "be null or lie in [0, 1)", self.fraction)
        require(self.patience >= 0, "validate.patience", "be 0 (never) or more", self.patience)
        is_used = self.patience == 0 or self.is_on
        require(is_used, "validate.patience", "be 0 with validate.every_epochs=0", self.patience)
        require(self.pause_after >= 0, "validate.pause_after", "be 0 (never) or more", self.pause_after)
        can_pause = self.pause_after == 0 or self.is_on
        require(can_pause, "validate.pause_after", "be 0 with validate.every_epochs=0", self.pause_after)
        require(self.min_delta >= 0, "validate.min_delta", "be 0 or more", self.min_delta)
        require(self.temporal_clips >= 1, "validate.temporal_clips", "be at least 1", self.temporal_clips)
        require(self.spatial_crops in (1, 3), "validate.spatial_crops", "be 1 or 3", self.spatial_crops)

    @property
    def is_on(self) -> bool:
        """False if nothing is validated during training."""
        return self.every_epochs != 0

    def interval(self, steps_per_epoch: float, steps: int) -> float:
        """Return the number of steps between two validations, at least 1, maybe a fraction."""
        if self.every_steps is not None:
            return float(self.every_steps)
        if self.every_epochs is not None:
            return max(1.0, self.every_epochs * steps_per_epoch)
        return max(1.0, steps_per_epoch, steps / MOST_BY_DEFAULT)


def is_due(done: int, *, interval: float, steps: int) -> bool:
    """Check whether a run validates after `done` steps: at the first step after each interval, and the last.

    Args:
        steps: of the whole run.
    """

    def passed(count: int) -> int:
        return math.floor(round(count / interval, 9))  # rounding error: 0.3 / 0.1 < 3

    return done == steps or passed(done) > passed(done - 1)


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Selection of the best model and early stopping.

    Attributes:
        metric: a key of the lines.
        maximize: whether larger values are better.
        patience, min_delta: see `ValidateConfig`.
    """

    metric: str
    maximize: bool
    patience: int = 0
    min_delta: float = 0.0

    def gain(self, line: Mapping[str, Any]) -> float:
        """Return the value of a line, larger is better; minus infinity without a finite value."""
        value = line.get(self.metric)
        if value is None or not math.isfinite(value):
            return -math.inf
        return float(value) if self.maximize else -float(value)

    def best(self, history: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
        """Return the line with the best value, the first of equal ones; None if no value is finite."""
        best = max(history, key=self.gain, default=None)  # max returns the first of equal ones
        return None if best is None or self.gain(best) == -math.inf else best

    def has_ended(self, history: Sequence[Mapping[str, Any]]) -> bool:
        """Check whether the last `patience` validations did not improve the best one before them."""
        if not self.patience:
            return False
        reference, waited = -math.inf, 0
        for line in history:
            if self.gain(line) > reference + self.min_delta:
                reference, waited = self.gain(line), 0
            else:
                waited += 1
        return waited >= self.patience


def is_maximized(metric: str, *, task_metric: str, maximize: bool) -> bool:
    """Return whether larger values of a metric are better.

    Args:
        task_metric, maximize: the default metric of the task and its direction.
    """
    return maximize if metric == task_metric else direction.is_maximized(metric) is not False
