"""Scores with few labels: random draws of some training samples per class, each scored on validation."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from kinemae.data_tools.randomness import generator
from kinemae.finetune.probe.config import ProbeConfig
from kinemae.finetune.probe.data import LabelledFeatures, Outcome
from kinemae.finetune.probe.logistic import fit_logistic
from kinemae.finetune.probe.methods import class_labels, metric_of
from kinemae.finetune.probe.neighbours import find_neighbours
from kinemae.finetune.tasks.classification import Classification


def few_shot_scores(
    config: ProbeConfig,
    task: Classification,
    train: LabelledFeatures,
    validation: LabelledFeatures,
    outcome: Outcome,
) -> list[dict[str, Any]]:
    """Score the config's method on every draw.

    Layer and pooling are those that `outcome` chose with all labels. Of nearest neighbours all drawn samples
    vote, at most the chosen number.

    Returns:
        A row per number or fraction: the metric of every try, their mean and standard deviation.
    """
    rows = []
    for number, (setting, counts) in enumerate(_settings(config, task, train)):
        scores, sizes = [], []
        for attempt in range(config.few_shot.tries):
            drawn_R = _draw(task, train, counts, seed=config.seed, setting=number, attempt=attempt)
            scores.append(_score(config, task, train, validation, outcome, drawn_R))
            sizes.append(len(drawn_R))
        defined = np.array([score for score in scores if score is not None])
        rows.append(
            {
                **setting,
                "samples": sizes[0],
                "scores": scores,
                "mean": float(defined.mean()) if len(defined) else None,
                "std": float(defined.std(ddof=1)) if len(defined) > 1 else None,
            }
        )
    return rows


def _settings(
    config: ProbeConfig, task: Classification, train: LabelledFeatures
) -> Iterator[tuple[dict[str, Any], dict[int, int]]]:
    """Each setting, with the number of samples to draw of each class."""
    labels = class_labels(task, train, train.features.readable)
    total = {label: labels.count(label) for label in sorted(set(labels)) if label >= 0}
    for per_class in config.few_shot.per_class:
        yield {"per_class": per_class}, {label: min(per_class, count) for label, count in total.items()}
    for fraction in config.few_shot.fractions:
        counts = {label: max(1, round(fraction * count)) for label, count in total.items()}
        yield {"fraction": fraction}, counts


def _draw(
    task: Classification,
    train: LabelledFeatures,
    counts: dict[int, int],
    *,
    seed: int,
    setting: int,
    attempt: int,
) -> np.ndarray:
    """Draw samples of each class without replacement, ascending."""
    readable = train.features.readable
    label_R = np.array(class_labels(task, train, readable))
    draws = generator(seed, purpose="few_shot", step=setting, sample=attempt)
    chosen = []
    for label, count in counts.items():
        of_class = readable[label_R == label]
        order = torch.randperm(len(of_class), generator=draws).numpy()
        chosen.append(of_class[order[:count]])
    return np.sort(np.concatenate(chosen))


def _score(
    config: ProbeConfig,
    task: Classification,
    train: LabelledFeatures,
    validation: LabelledFeatures,
    outcome: Outcome,
    drawn_R: np.ndarray,
) -> float | None:
    layer, pool = outcome.layer, outcome.chosen["pool"]
    readable = validation.features.readable
    if config.method == "logistic":
        fitted = fit_logistic(
            train, layer, pool, drawn_R, c=config.few_shot.c, max_iter=config.logistic.max_iter
        )
        predictions = fitted.predictions(task, validation, readable)
    else:
        k, temperature = outcome.chosen["k"], outcome.chosen["temperature"]
        found = find_neighbours((train, drawn_R), (validation, readable), layer=layer, pool=pool, most=k)
        predictions = found.predictions(task, k=k, temperature=temperature)
    return metric_of(task, predictions, validation)
