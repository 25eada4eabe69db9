"""Regression: one or several numbers per sample."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from kinemae.data_tools.command import DataError
from kinemae.data_tools.config import require
from kinemae.data_tools.index import ShardIndex
from kinemae.finetune.labels.columns import column_numbers
from kinemae.finetune.labels.target_flips import TargetFlip
from kinemae.finetune.losses import mean_of_known
from kinemae.finetune.metrics.regression import regression_metrics
from kinemae.finetune.tasks.base import ColumnTargets, NothingToScore, SamplePrediction, Targets, Task

_LOSSES = {"mse": functional.mse_loss, "l1": functional.l1_loss, "smooth_l1": functional.smooth_l1_loss}


class Regression(Task):
    """Numbers of columns, standardized by mean and standard deviation of the training set.

    Args:
        labels: the columns: one name, or a list of names. A sample's loss is the mean over its numbers.
        loss: of the standardized numbers: "mse", "l1", or "smooth_l1", which is linear above an error of 1.
        flip_negates: columns that change their sign if a clip is flipped left to right, such as a horizontal
            speed.
        allow_missing: accept samples without some or all numbers.
    """

    metric = "standardized_mae"
    maximize = False
    mean_V: Tensor
    deviation_V: Tensor

    def __init__(
        self,
        *,
        labels: str | list[str],
        loss: str = "mse",
        flip_negates: str | list[str] | None = None,
        allow_missing: bool = False,
    ):
        super().__init__()
        require(loss in _LOSSES, "task.args.loss", f"be one of {', '.join(_LOSSES)}", loss)
        self.labels = [labels] if isinstance(labels, str) else labels
        negated = [flip_negates] if isinstance(flip_negates, str) else flip_negates or []
        is_list = isinstance(self.labels, list) and all(isinstance(name, str) for name in self.labels)
        is_unique = is_list and 0 < len(self.labels) == len(set(self.labels))
        require(is_unique, "task.args.labels", "be a column or a list of different columns", labels)
        is_part = isinstance(negated, list) and all(name in self.labels for name in negated)
        require(is_part, "task.args.flip_negates", f"name columns of labels={self.labels}", flip_negates)
        self.loss_name = loss
        self.negated = negated
        self.allow_missing = allow_missing
        self.register_buffer("mean_V", torch.zeros(len(self.labels), dtype=torch.float64), persistent=False)
        self.register_buffer("deviation_V", torch.ones_like(self.mean_V), persistent=False)

    def fit(self, train: ShardIndex, *, key: str) -> None:
        value_RV = self._values(train, key=key)
        means, deviations = [], []
        for name, value_R in zip(self.labels, value_RV.T, strict=True):
            known = value_R[~np.isnan(value_R)]
            if len(known) == 0 or np.ptp(known) == 0:
                got = "none" if len(known) == 0 else f"{known[0]:g} in all videos"
                raise DataError(
                    f"{key}: expected different numbers in the column {name}, got {got}; "
                    "fix: choose another column"
                )
            means.append(float(known.mean()))
            deviations.append(float(known.std()))
        self.load_state({"labels": self.labels, "mean": means, "deviation": deviations})

    def state(self) -> dict[str, Any]:
        numbers = {"mean": self.mean_V.tolist(), "deviation": self.deviation_V.tolist()}
        return {"labels": self.labels, **numbers}

    def load_state(self, state: Mapping[str, Any]) -> None:
        if list(state["labels"]) != self.labels:
            raise ValueError(f"expected the columns {self.labels}, got {state['labels']}")
        mean_V = torch.tensor(state["mean"], dtype=torch.float64)
        deviation_V = torch.tensor(state["deviation"], dtype=torch.float64)
        if not len(mean_V) == len(deviation_V) == len(self.labels) or not (deviation_V > 0).all():
            raise ValueError(f"expected a mean and a positive deviation per column, got {dict(state)}")
        self.mean_V, self.deviation_V = mean_V, deviation_V

    @property
    def outputs(self) -> int:
        return len(self.labels)

    def read(self, index: ShardIndex, *, key: str) -> ColumnTargets:
        value_RV = self._values(index, key=key)
        if np.isnan(value_RV).all():
            raise DataError(
                f"{key}: expected numbers in {', '.join(self.labels)}, got none; fix: choose other columns"
            )
        return ColumnTargets({"value": value_RV})

    def loss(self, output: Tensor, targets: Mapping[str, Tensor]) -> Tensor:
        value_BV = targets["value"]
        is_known_BV = ~value_BV.isnan()
        standard_BV = torch.where(is_known_BV, (value_BV - self.mean_V) / self.deviation_V, 0.0)
        loss_BV = _LOSSES[self.loss_name](output, standard_BV.to(output.dtype), reduction="none")
        return mean_of_known(loss_BV, is_known_BV)

    def has_target(self, targets: Mapping[str, Tensor]) -> Tensor:
        return ~targets["value"].isnan().all(dim=1)

    def target_flip(self, pairs: Sequence[Sequence[str]]) -> TargetFlip:
        super().target_flip(pairs)
        places = tuple(self.labels.index(name) for name in self.negated)
        return TargetFlip(negate={"value": places} if places else {})

    def predict(self, output: Tensor) -> Tensor:
        return output.double() * self.deviation_V.to(output.device) + self.mean_V.to(output.device)

    def score(self, predictions: Sequence[SamplePrediction], targets: Targets) -> dict[str, Any]:
        value_RV = np.array([targets.of_sample(each.position)["value"] for each in predictions])
        value_RV = value_RV.astype(np.float64)  # a missing number is None in JSON
        predicted_RV = np.stack([each.values["prediction"] for each in predictions if each.values])
        if np.isnan(value_RV).all():
            raise NothingToScore(
                f"expected numbers in {', '.join(self.labels)} for a readable video, got none; "
                "fix: label some of the validation videos"
            )
        mean_RV = np.broadcast_to(self.mean_V.cpu().numpy(), predicted_RV.shape)
        floor = self._metrics(mean_RV, value_RV)
        names = (self.metric, "mae", "rmse", "r2")
        return {**self._metrics(predicted_RV, value_RV), "floor": {name: floor[name] for name in names}}

    def _metrics(self, predicted_RV: np.ndarray, value_RV: np.ndarray) -> dict[str, Any]:
        error_RV = np.abs(predicted_RV - value_RV) / self.deviation_V.cpu().numpy()
        present_V = ~np.isnan(value_RV).all(axis=0)
        standardized = np.nanmean(error_RV[:, present_V], axis=0).mean()
        return {self.metric: float(standardized), **regression_metrics(predicted_RV, value_RV, self.labels)}

    def _values(self, index: ShardIndex, *, key: str) -> np.ndarray:
        columns = [column_numbers(index, name, key=key, may_miss=self.allow_missing) for name in self.labels]
        return np.stack(columns, axis=1)
