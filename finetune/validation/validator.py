"""Validation of a fine-tuning run during training, on all processes; the best model and early stopping."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kinemae.data_tools.command import log
from kinemae.finetune.config import FinetuneConfig
from kinemae.finetune.evaluate import score_samples, warn_of_gaps
from kinemae.finetune.evaluation.inference import predict_samples
from kinemae.finetune.heads.base import Features
from kinemae.finetune.labels.data_sets import DataSet, validation_samples
from kinemae.finetune.metrics import direction
from kinemae.finetune.model_file import FinetunedModel
from kinemae.finetune.tasks.base import NothingToScore, SamplePrediction
from kinemae.finetune.validation.best_model import BestModel
from kinemae.finetune.validation.selection import Selection, is_due, is_maximized
from kinemae.pretrain.callbacks import eval_mode
from kinemae.pretrain.runtime.checkpoint_storage import storage_of
from kinemae.pretrain.runtime.metrics import strict_json
from kinemae.pretrain.runtime.processes import Processes
from kinemae.pretrain.runtime.weight_average import evaluation_weights


@dataclass(kw_only=True)
class TaskValidator:
    """Scores the validation data at fixed steps; see `runtime.validation.Validator`.

    Attributes:
        trained: the module that is trained; its `evaluation_weights` are validated and saved.
        data: the validation data.
        config: `data.num_workers` is the number of loader workers of this process.
        steps: of the whole run.
        steps_per_epoch: may be a fraction.
        write: writes the model, trained for some steps, to a folder.
    """

    finetuned: FinetunedModel
    trained: nn.Module
    data: DataSet
    config: FinetuneConfig
    processes: Processes
    steps: int
    steps_per_epoch: float
    write: Callable[[Path, int], None]

    def __post_init__(self) -> None:
        self.interval = self.config.validate.interval(self.steps_per_epoch, self.steps)
        self.selection = selection_of(self.config, self.finetuned)
        run_dir = Path(self.config.run_dir)
        checkpoints = storage_of(run_dir, self.config.save_to)
        self.best = BestModel(run_dir, checkpoints, self.selection, self.processes)
        self.samples = validation_samples(self.config, self.data.index)

    def is_due(self, done: int) -> bool:
        """See `Validator`."""
        return is_due(done, interval=self.interval, steps=self.steps)

    def open(self, history: Sequence[dict[str, Any]]) -> None:
        """See `Validator`."""
        self.best.restore(history)

    def has_ended(self, history: Sequence[dict[str, Any]]) -> bool:
        """See `Validator`."""
        return self.selection.has_ended(history)

    def must_pause(self, history: Sequence[dict[str, Any]]) -> bool:
        """See `Validator`."""
        return 0 < self.config.validate.pause_after <= len(history)

    def validate(
        self, done: int, history: Sequence[dict[str, Any]], on_progress: Callable[[], None]
    ) -> dict[str, Any]:
        """See `Validator`."""
        with evaluation_weights(self.trained), eval_mode(self.finetuned.model):
            line = self._line(done, history, on_progress)
            is_best = self.selection.best([*history, line]) is line
            if is_best:
                self.best.save(line, lambda folder: self.write(folder, done))
        if self.processes.is_first:
            value, mark = line.get(self.selection.metric), " (best)" if is_best else ""
            log.info("validation after step %d: %s %s%s", done, self.selection.metric, value, mark)
            if "stopped" in line:
                log.info("no improvement in %d validations: the run ends here", self.selection.patience)
        return line

    def _line(
        self, done: int, history: Sequence[dict[str, Any]], on_progress: Callable[[], None]
    ) -> dict[str, Any]:
        """Score the model; return the line, the same on every process."""
        validate, index = self.config.validate, self.data.index
        views = replace(
            self.config.evaluate,
            temporal_clips=validate.temporal_clips,
            spatial_crops=validate.spatial_crops,
        )
        config = replace(self.config, evaluate=views)
        predictions = predict_samples(
            self.finetuned, index, config, self.processes, samples=self.samples, on_progress=on_progress
        )
        scores = self._scores(predictions, done)
        if self.processes.is_first and not history:
            warn_of_gaps(scores)
        numbers = {name: value for name, value in scores.items() if _is_number(value)}
        head = {"step": done - 1, "epoch": round(done / self.steps_per_epoch, 4)}
        line = strict_json({**head, **numbers, "skipped": len(scores["skipped"])})
        if self.selection.has_ended([*history, line]):
            line["stopped"] = True
        return self.processes.broadcast_object(line)

    def _scores(self, predictions: list[SamplePrediction], done: int) -> dict[str, Any]:
        """Score the model; no metric if no target is in the clips of these videos."""
        try:
            return score_samples(self.finetuned.model.task, predictions, self.data.index, key=self.data.key)
        except NothingToScore as error:
            if self.processes.is_first:
                log.warning("validation after step %d has no score: %s", done, error)
            return {"skipped": [each for each in predictions if each.values is None]}


def selection_of(config: FinetuneConfig, finetuned: FinetunedModel) -> Selection:
    """Return how the config selects the best model of a task."""
    task, validate = finetuned.model.task, config.validate
    metric = validate.metric or task.metric
    return Selection(
        metric=metric,
        maximize=is_maximized(metric, task_metric=task.metric, maximize=task.maximize),
        patience=validate.patience,
        min_delta=validate.min_delta,
    )


def check_metric(config: FinetuneConfig, finetuned: FinetunedModel, data: DataSet) -> None:
    """Check before training that the task computes `validate.metric`.

    Raises:
        ValueError: it does not; names the metrics of the task.
    """
    metric = config.validate.metric
    if metric is None or metric == finetuned.model.task.metric:
        return
    known = sorted(_metrics(finetuned, data))
    if metric not in known:
        raise ValueError(
            f"validate.metric: expected a metric of task.name={config.task.name}, got {metric}; "
            f"fix: choose one of {', '.join(known)}"
        )


def _metrics(finetuned: FinetunedModel, data: DataSet) -> set[str]:
    """Names of the scores that a task computes, from the output for one empty clip; no counts."""
    model = finetuned.model
    slices = model.encoder.grid.t * model.chunks
    with eval_mode(model):
        tokens_BND = torch.zeros(1, model.grid_tokens, model.encoder.shape.width)
        layers = tuple(tokens_BND for _ in model.head.layers)
        output_V = model.head(Features(tokens_BND, slices=slices, layers=layers), None).float()
    time_VT = torch.zeros(1, slices * model.encoder.shape.patch[0], dtype=torch.float64)
    values = model.task.combine(model.task.predict(output_V), time_VT)
    same = [SamplePrediction(position=i, key="", values=values) for i in range(len(data.index))]
    scores = score_samples(model.task, same, data.index, key=data.key)
    return {
        name
        for name, value in scores.items()
        if _is_number(value) and direction.is_maximized(name) is not None
    }


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
