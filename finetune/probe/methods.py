"""The methods of a probe on one encoder: each selects on training data and predicts validation once."""

import logging
from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import torch

from kinemae.data_tools.command import log
from kinemae.data_tools.holdout import hold_out
from kinemae.finetune.probe.config import ProbeConfig
from kinemae.finetune.probe.data import LabelledFeatures, Outcome, best_of
from kinemae.finetune.probe.heads import HeadTrainer, head_grid
from kinemae.finetune.probe.logistic import cross_validated, fit_logistic
from kinemae.finetune.probe.neighbours import Neighbours, find_neighbours, neighbour_counts
from kinemae.finetune.tasks.base import SamplePrediction, Task
from kinemae.finetune.tasks.classification import Classification


def run_method(
    config: ProbeConfig,
    task: Task,
    train: LabelledFeatures,
    validation: LabelledFeatures,
    *,
    width: int,
    device: torch.device,
) -> Outcome:
    """Select a candidate of the config's method on the training data and predict the validation data.

    Raises:
        DataError: the training data cannot be divided.
        ValueError: an attentive head that does not fit the encoder.
    """
    if config.method == "knn":
        assert isinstance(task, Classification), "checked before"
        return _run_knn(config, task, train, validation)
    if config.method == "logistic":
        assert isinstance(task, Classification), "checked before"
        return _run_logistic(config, task, train, validation)
    trainer = HeadTrainer(
        task=task.to(device), settings=config.train, seed=config.seed, width=width, device=device
    )
    return _run_heads(config, trainer, train, validation)


def _run_heads(
    config: ProbeConfig, trainer: HeadTrainer, train: LabelledFeatures, validation: LabelledFeatures
) -> Outcome:
    task, heads = trainer.task, head_grid(config, list(train.features.layers), slices=train.features.slices)
    fit_R, held_R = divide(config, task, train)
    trained = trainer.train(heads, train, fit_R)
    scores = [
        metric_of(task, train.predictions(task, output_RVY, held_R), train)
        for output_RVY in trained.outputs(train, held_R)
    ]
    best = best_of(scores, maximize=task.maximize)
    number = best
    if config.select.refit:
        trained, number = trainer.train([heads[best]], train, train.features.readable), 0
    output_RVY = trained.outputs(validation, validation.features.readable)[number]
    return Outcome(
        table=[{**each.record(), "held_out": score} for each, score in zip(heads, scores, strict=True)],
        chosen={**heads[best].record(), "held_out": scores[best]},
        predictions=validation.predictions(task, output_RVY, validation.features.readable),
        selection={
            "on": "held-out part of data.train, whole groups",
            "metric": task.metric,
            "trained_on": len(fit_R),
            "held_out": len(held_R),
            "refit_on": len(train.features.readable) if config.select.refit else None,
            "steps": trainer.steps(len(fit_R)),
        },
        head=None if train.features.kind == "vectors" else trained.head(number),
        head_component=heads[best].component(),
        layer=heads[best].layer,
    )


def _run_knn(
    config: ProbeConfig, task: Classification, train: LabelledFeatures, validation: LabelledFeatures
) -> Outcome:
    fit_R, held_R = divide(config, task, train)
    counts = neighbour_counts(config.knn.k, len(fit_R))
    candidates = list(product(train.features.layers, config.grid.pool, counts, config.knn.temperature))
    banks: dict[tuple[int, str], Neighbours] = {}
    scores = []
    for layer, pool, k, temperature in candidates:
        if (layer, pool) not in banks:
            banks[layer, pool] = find_neighbours(
                (train, fit_R), (train, held_R), layer=layer, pool=pool, most=max(counts)
            )
        predictions = banks[layer, pool].predictions(task, k=k, temperature=temperature)
        scores.append(metric_of(task, predictions, train))
    best = best_of(scores, maximize=task.maximize)
    layer, pool, k, temperature = candidates[best]
    readable = train.features.readable
    found = find_neighbours(
        (train, readable), (validation, validation.features.readable), layer=layer, pool=pool, most=k
    )
    table = [
        {"k": k, "temperature": temperature, "layer": layer, "pool": pool, "held_out": score}
        for (layer, pool, k, temperature), score in zip(candidates, scores, strict=True)
    ]
    return Outcome(
        table=table,
        chosen=table[best],
        predictions=found.predictions(task, k=k, temperature=temperature),
        selection={
            "on": "held-out part of data.train, whole groups",
            "metric": task.metric,
            "trained_on": len(fit_R),
            "held_out": len(held_R),
            "refit_on": len(readable),
        },
        layer=layer,
    )


def _run_logistic(
    config: ProbeConfig, task: Classification, train: LabelledFeatures, validation: LabelledFeatures
) -> Outcome:
    candidates = list(product(train.features.layers, config.grid.pool, config.logistic.c))
    table = cross_validated(config, task, train, candidates)
    best = best_of([row["held_out"] for row in table], maximize=task.maximize)
    layer, pool, c = candidates[best]
    readable = train.features.readable
    fitted = fit_logistic(train, layer, pool, readable, c=c, max_iter=config.logistic.max_iter)
    return Outcome(
        table=table,
        chosen=table[best],
        predictions=fitted.predictions(task, validation, validation.features.readable),
        selection={
            "on": f"cross-validation inside data.train, {config.select.folds} folds of whole groups",
            "metric": task.metric,
            "refit_on": len(readable),
        },
        layer=layer,
    )


def divide(config: ProbeConfig, task: Task, data: LabelledFeatures) -> tuple[np.ndarray, np.ndarray]:
    """Divide the readable training samples into a part to train on and a held-out part."""
    readable = data.features.readable
    index = data.index if len(readable) == len(data.index) else data.index.view(readable)
    labels = class_labels(task, data, readable)
    fit_R, held_R = hold_out(
        index, fraction=config.select.fraction, seed=config.seed, key=data.key, labels=labels
    )
    return readable[fit_R], readable[held_R]


def class_labels(task: Task, data: LabelledFeatures, sample_R: np.ndarray) -> list[int]:
    """The class of each sample; 0 for tasks without classes."""
    if not isinstance(task, Classification):
        return [0] * len(sample_R)
    return [int(data.targets.of_sample(int(position))["label"]) for position in sample_R]


def metric_of(task: Task, predictions: Sequence[SamplePrediction], data: LabelledFeatures) -> float | None:
    """The metric that selects. Warnings are not logged, since a part of the data may lack classes."""
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        value: Any = task.score(predictions, data.targets)[task.metric]
    finally:
        log.setLevel(level)
    return None if value is None else float(value)
