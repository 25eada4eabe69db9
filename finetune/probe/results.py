"""Results of a probe: scores with intervals, floor and cost."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch

from kinemae.finetune.evaluation.predictions import PredictionTable, prediction_table
from kinemae.finetune.metrics.intervals import bootstrap, bootstrap_mean
from kinemae.finetune.probe.config import ProbeConfig
from kinemae.finetune.probe.data import LabelledFeatures, Outcome
from kinemae.finetune.probe.methods import metric_of
from kinemae.finetune.probe.stores import ProbedEncoder
from kinemae.finetune.tasks.base import SamplePrediction, Task
from kinemae.finetune.tasks.classification import Classification

_RESAMPLES = 500
_ITERATIONS = 50


def build_result(
    config: ProbeConfig,
    probed: ProbedEncoder,
    train: LabelledFeatures,
    validation: LabelledFeatures,
    outcome: Outcome,
) -> dict[str, Any]:
    """The result of one encoder as JSON, with the keys of `finetune evaluate` and "probe"."""
    task, source = probed.task, probed.source
    skipped = validation.features.skipped.items()
    tokens = 0 if source is None else source.description.grid.tokens
    views = asdict(config.evaluate) if source is not None else {"temporal_clips": 1, "spatial_crops": 1}
    return {
        "metric": task.metric,
        **task.score(outcome.predictions, validation.targets),
        "videos": len(outcome.predictions),
        "skipped": [
            {"key": validation.index.sample(position).key, "error": reason} for position, reason in skipped
        ],
        "views": {**views, "total": validation.features.views},
        "tokens": {"grid": tokens, "kept": float(tokens)},
        "data": {"validation": config.data.validation, "fingerprint": validation.index.fingerprint},
        "run": {
            "encoder": None if source is None else str(source.folder),
            "weights": config.weights,
            "adapt": "frozen",
            "head": config.method,
            "lr": outcome.chosen.get("lr", 0.0),
            "epochs": config.train.epochs if "lr" in outcome.chosen else 0,
            "seed": config.seed,
        },
        "probe": {
            "method": config.method,
            "step": None if source is None else source.step,
            "interval": interval(config, task, validation, outcome.predictions),
            "floor": floor(task, train, validation),
            "chosen": outcome.chosen,
            "selection": outcome.selection,
            "grid": outcome.table,
            "training_samples": len(train.features.readable),
            "training_views": train.features.views,
            "features": None if probed.train.provenance is None else asdict(probed.train.provenance),
        },
    }


def predictions_of(
    config: ProbeConfig, validation: LabelledFeatures, outcome: Outcome, result: dict[str, Any]
) -> PredictionTable:
    """The predictions of all validation samples, as `finetune evaluate` writes them, without losses."""
    failed = [
        SamplePrediction(
            position=position, key=validation.index.sample(position).key, values=None, error=reason
        )
        for position, reason in validation.features.skipped.items()
    ]
    predictions = sorted([*outcome.predictions, *failed], key=lambda each: each.position)
    provenance = {
        "task": asdict(config.task),
        **{key: result[key] for key in ("metric", "views", "data", "run")},
        "identity": validation.index.identity,
        "config": asdict(config),
    }
    table = prediction_table(predictions, validation.targets, validation.index, result, provenance)
    views = [None if each.values is None else validation.features.views for each in predictions]
    return replace(table, columns={**table.columns, "loss": [None] * len(views), "views": views})


def interval(
    config: ProbeConfig, task: Task, data: LabelledFeatures, predictions: Sequence[SamplePrediction]
) -> dict[str, Any]:
    """The 95 % bootstrap interval of the metric on validation; whole groups are drawn where there are any."""
    positions = np.array([each.position for each in predictions])
    groups = data.index.column("group")[positions].tolist()
    if isinstance(task, Classification) and task.metric == "top1":
        correct_R = [
            each.values is not None
            and int(each.values["prediction"].argmax()) == data.targets.of_sample(each.position)["label"]
            for each in predictions
        ]
        found = bootstrap_mean(np.array(correct_R, dtype=np.float64), groups, seed=config.seed)
    else:

        def metric(rows: np.ndarray) -> float | None:
            return metric_of(task, [predictions[row] for row in rows], data)

        found = bootstrap(metric, len(predictions), groups, seed=config.seed, resamples=_RESAMPLES)
    return {"metric": task.metric, "ci95": found, "groups": len(set(groups) - {""})}


def floor(task: Task, train: LabelledFeatures, validation: LabelledFeatures) -> dict[str, Any]:
    """The score of the constant output with the smallest training loss: for classes, the majority class."""
    sample_R = train.features.readable
    targets = train.targets_of(sample_R, np.zeros(len(sample_R), dtype=np.int64))
    task = task.cpu()
    output_Y = torch.zeros(task.outputs, requires_grad=True)
    optimizer = torch.optim.LBFGS([output_Y], max_iter=_ITERATIONS, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = task.loss(output_Y.expand(len(sample_R), -1), targets).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    readable = validation.features.readable
    output_RVY = output_Y.detach().expand(len(readable), validation.features.views, -1)
    predictions = validation.predictions(task, output_RVY, readable)
    return {"metric": task.metric, "value": metric_of(task, predictions, validation)}
