"""Features of a data set with the targets of a task: the input of every method of a probe."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kinemae.data_tools.components import Component
from kinemae.data_tools.index import ShardIndex
from kinemae.data_tools.randomness import generator
from kinemae.finetune.heads.base import Head
from kinemae.finetune.probe.store import Features
from kinemae.finetune.tasks.base import SamplePrediction, Targets, Task


@dataclass(frozen=True, kw_only=True)
class LabelledFeatures:
    """One data set.

    Attributes:
        key: config key and place, for messages.
    """

    features: Features
    targets: Targets
    index: ShardIndex
    key: str

    def targets_of(self, sample_B: np.ndarray, view_B: np.ndarray) -> dict[str, Tensor]:
        """The targets of some views."""
        time_BT = torch.from_numpy(np.array(self.features.time_SVT[sample_B, view_B]))
        return self.targets.of_clips(torch.from_numpy(sample_B), time_BT)

    def predictions(self, task: Task, output_RVY: Tensor, sample_R: np.ndarray) -> list[SamplePrediction]:
        """Combine the outputs of the views of each sample."""
        return [
            self.prediction(task, int(position), task.predict(output_VY.float()))
            for position, output_VY in zip(sample_R, output_RVY, strict=True)
        ]

    def prediction(self, task: Task, position: int, prediction_VY: Tensor) -> SamplePrediction:
        """Combine the predictions of the views of one sample."""
        time_VT = torch.from_numpy(np.array(self.features.time_SVT[position]))
        key = self.index.sample(position).key
        return SamplePrediction(position=position, key=key, values=task.combine(prediction_VY, time_VT))


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Result of a method on one encoder.

    Attributes:
        table: one row per candidate: its settings and "held_out", the metric that selects.
        chosen: settings of the chosen candidate.
        predictions: of the readable validation samples, by position.
        selection: how the candidate was chosen.
        head, head_component: the chosen head and its config, if it can be saved in a model.
        layer: the block whose tokens the chosen candidate reads.
    """

    table: list[dict[str, Any]]
    chosen: dict[str, Any]
    predictions: list[SamplePrediction]
    selection: dict[str, Any]
    head: Head | None = None
    head_component: Component | None = None
    layer: int = 0


class BatchOrder:
    """Order of the views in training, a function of the seed and the step.

    An epoch takes one view of each sample; consecutive epochs take consecutive views.

    Args:
        sample_R: positions of the training samples.
        views: views per sample.
        batch: samples per step.
    """

    def __init__(self, sample_R: np.ndarray, *, views: int, batch: int, seed: int):
        self.sample_R = sample_R
        self.views = views
        self.batch = min(batch, len(sample_R))
        self.seed = seed
        self._orders: dict[int, np.ndarray] = {}

    def at(self, step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rows (positions in `sample_R`), samples and views of a step."""
        place_B = np.arange(step * self.batch, (step + 1) * self.batch)
        epoch_B, slot_B = np.divmod(place_B, len(self.sample_R))
        first, last = int(epoch_B[0]), int(epoch_B[-1])
        for epoch in [each for each in self._orders if each < first]:
            del self._orders[epoch]
        row_B = np.concatenate(
            [self._order(epoch)[slot_B[epoch_B == epoch]] for epoch in range(first, last + 1)]
        )
        view_B = (row_B + epoch_B) % self.views
        return row_B, self.sample_R[row_B], view_B

    def _order(self, epoch: int) -> np.ndarray:
        if epoch not in self._orders:
            draws = generator(self.seed, purpose="probe_order", step=epoch)
            self._orders[epoch] = torch.randperm(len(self.sample_R), generator=draws).numpy()
        return self._orders[epoch]


def best_of(values: Sequence[float | None], *, maximize: bool) -> int:
    """Number of the best value, the first of equal ones; undefined values are the worst."""
    worst = -np.inf if maximize else np.inf
    known = [worst if value is None or not np.isfinite(value) else value for value in values]
    return int(np.argmax(known) if maximize else np.argmin(known))
