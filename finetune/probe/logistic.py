"""Logistic regression of scikit-learn on standardized pooled features; C by grouped cross-validation."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from kinemae.data_tools.command import DataError, log
from kinemae.data_tools.randomness import derived_seed
from kinemae.finetune.metrics.intervals import group_numbers
from kinemae.finetune.probe.config import ProbeConfig
from kinemae.finetune.probe.data import LabelledFeatures
from kinemae.finetune.tasks.base import SamplePrediction
from kinemae.finetune.tasks.classification import Classification

Candidate = tuple[int, str, float]  # layer, pooling, C


@dataclass(frozen=True, kw_only=True)
class FittedLogistic:
    """A fitted regression on one layer and pooling."""

    model: Pipeline
    layer: int
    pool: str

    def predictions(
        self, task: Classification, data: LabelledFeatures, sample_R: np.ndarray
    ) -> list[SamplePrediction]:
        """Predict each sample: the mean over its views of the class probabilities."""
        pooled_RVX = data.features.pooled(self.layer, self.pool, sample_R)
        rows, views, width = pooled_RVX.shape
        probability_XY = np.zeros((rows * views, task.outputs))
        classes = self.model.classes_.astype(int)
        probability_XY[:, classes] = self.model.predict_proba(pooled_RVX.numpy().reshape(-1, width))
        return [
            data.prediction(task, int(position), torch.from_numpy(probability_VY))
            for position, probability_VY in zip(
                sample_R, probability_XY.reshape(rows, views, -1), strict=True
            )
        ]


def fit_logistic(
    data: LabelledFeatures, layer: int, pool: str, sample_R: np.ndarray, *, c: float, max_iter: int
) -> FittedLogistic:
    """Fit a regression on all views of some samples."""
    pooled_RVX = data.features.pooled(layer, pool, sample_R)
    rows, views, width = pooled_RVX.shape
    labels = [data.targets.of_sample(int(position))["label"] for position in sample_R]
    model = make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=max_iter))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(pooled_RVX.numpy().reshape(rows * views, width), np.repeat(labels, views))
    if int(model[-1].n_iter_.max()) >= max_iter:
        log.warning("logistic.max_iter=%d: the regression with C=%g has not converged", max_iter, c)
    return FittedLogistic(model=model, layer=layer, pool=pool)


def cross_validated(
    config: ProbeConfig, task: Classification, train: LabelledFeatures, candidates: Sequence[Candidate]
) -> list[dict[str, Any]]:
    """Score each candidate on folds of the training data that were not fitted.

    Returns:
        A row per candidate; "held_out" is the metric over the predictions of all folds.

    Raises:
        DataError: fewer groups than folds.
    """
    folds = grouped_folds(config, train)
    table = []
    for layer, pool, c in candidates:
        predictions: list[SamplePrediction] = []
        for fit_R, held_R in folds:
            fitted = fit_logistic(train, layer, pool, fit_R, c=c, max_iter=config.logistic.max_iter)
            predictions += fitted.predictions(task, train, held_R)
        score = task.score(sorted(predictions, key=lambda each: each.position), train.targets)[task.metric]
        table.append({"c": c, "layer": layer, "pool": pool, "held_out": score})
    return table


def grouped_folds(config: ProbeConfig, train: LabelledFeatures) -> list[tuple[np.ndarray, np.ndarray]]:
    """Divide the readable samples into folds of whole groups, stratified by class.

    Raises:
        DataError: fewer groups than folds, or a fold with one class only.
    """
    readable = train.features.readable
    labels = np.array([train.targets.of_sample(int(position))["label"] for position in readable])
    number_R, groups = group_numbers(train.index.column("group")[readable].tolist(), len(readable))
    if groups < config.select.folds:
        raise DataError(
            f"{train.key}: expected at least select.folds={config.select.folds} groups, got {groups}; "
            "fix: lower "
            "select.folds"
        )
    seed = derived_seed(config.seed, purpose="probe_folds") % (1 << 32)
    splitter = StratifiedGroupKFold(config.select.folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a class with fewer samples than folds
        parts = list(splitter.split(labels[:, None], labels, number_R))
    for fit_R, held_R in parts:
        if len(np.unique(labels[fit_R])) < 2 or not len(held_R):
            raise DataError(
                f"{train.key}: expected two classes in each of select.folds={config.select.folds} folds "
                "of whole "
                "groups, got one; fix: lower select.folds, or use method=knn"
            )
    return [(readable[fit_R], readable[held_R]) for fit_R, held_R in parts]
