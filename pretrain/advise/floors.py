"""Floors of a labelled data set: accuracy of logistic regressions without any learned feature."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from kinemae.data_tools.index import ShardIndex
from kinemae.data_tools.randomness import generator

FOLDS = 5
_FEWEST_OF_A_CLASS = 2 * FOLDS
_GREY_SIDE = 16  # as in docs/results.md
_PENALTY = {"metadata": 1.0}
_PIXEL_PENALTY = 1e3
_MAX_ITERATIONS = 100


@dataclass(frozen=True, kw_only=True)
class Floors:
    """Held-out accuracy of each floor.

    Attributes:
        videos: number of labelled videos that were used.
        classes: number of classes with enough videos.
        has_groups: whether groups were kept apart; otherwise the folds are random, as the splits of
            `kinemae data shard` without groups.
        largest_class: accuracy of always naming the largest class.
        scores: accuracy by floor, the mean of the folds.
        deviations: standard deviation over the folds.
    """

    videos: int
    classes: int
    has_groups: bool
    largest_class: float
    scores: Mapping[str, float]
    deviations: Mapping[str, float]

    def excess(self, name: str) -> float:
        """Accuracy above the largest class; 0 if it is within two standard errors of the folds."""
        excess = self.scores[name] - self.largest_class
        return excess if excess > 2 * self.deviations[name] / FOLDS**0.5 else 0.0

    def summary(self) -> dict[str, Any]:
        """Return the floors as JSON."""
        return {
            "videos": self.videos,
            "classes": self.classes,
            "has_groups": self.has_groups,
            "largest_class": round(self.largest_class, 4),
            "scores": {name: round(score, 4) for name, score in self.scores.items()},
            "deviations": {name: round(value, 4) for name, value in self.deviations.items()},
        }


def measure_floors(index: ShardIndex, grey: Mapping[int, np.ndarray], *, seed: int) -> Floors | None:
    """Fit and score the floors on the labelled videos that were decoded.

    Classes with fewer than two videos for each fold are left out.

    Args:
        grey: grey_THW of each video by its position.

    Returns:
        None with fewer than two classes, or fewer groups than folds.
    """
    position_R = np.array(sorted(grey), dtype=np.int64)
    label_R = index.column("label")[position_R] if len(position_R) else np.empty(0, np.int64)
    counts = np.bincount(label_R[label_R >= 0]) if (label_R >= 0).any() else np.empty(0, np.int64)
    is_used_R = np.isin(label_R, np.flatnonzero(counts >= _FEWEST_OF_A_CLASS))
    position_R, label_R = position_R[is_used_R], label_R[is_used_R]
    group_R, has_groups = _groups(index, position_R)
    if len(np.unique(label_R)) < 2 or len(np.unique(group_R)) < FOLDS:
        return None
    grey_RTHW = np.stack([_small(grey[position]) for position in position_R.tolist()])
    folds_scores = {
        name: _fold_scores(features(index, position_R, grey_RTHW), label_R, group_R, name, seed)
        for name, features in FLOORS.items()
    }
    return Floors(
        videos=len(label_R),
        classes=len(np.unique(label_R)),
        has_groups=has_groups,
        largest_class=float(np.bincount(label_R).max() / len(label_R)),
        scores={name: float(np.mean(scores)) for name, scores in folds_scores.items()},
        deviations={name: float(np.std(scores, ddof=1)) for name, scores in folds_scores.items()},
    )


def _small(grey_THW: np.ndarray) -> np.ndarray:
    """Average pixels, in the range of 0 to 1."""
    small_THW: np.ndarray = F.adaptive_avg_pool2d(torch.from_numpy(grey_THW).float(), _GREY_SIDE).numpy()
    return small_THW / 255


def _groups(index: ShardIndex, position_R: np.ndarray) -> tuple[np.ndarray, bool]:
    """A group for each video; each video is its own group if the index does not name all groups."""
    groups = index.column("group")[position_R].astype(str)
    if len(groups) and (groups != "").all():
        return np.unique(groups, return_inverse=True)[1], True
    return np.arange(len(position_R)), False


def _metadata(index: ShardIndex, position_R: np.ndarray, grey_RTHW: np.ndarray) -> np.ndarray:
    """Logarithms of width, height, number of frames and frame rate, their squares and products."""
    width, height, frames, seconds = (
        np.maximum(index.column(name)[position_R].astype(np.float64), 1e-6)
        for name in ("width", "height", "frames", "duration_s")
    )
    logs_RX = np.log(np.stack([width, height, frames, frames / seconds], axis=1))
    logs_RX -= logs_RX.mean(axis=0)
    one, other = np.triu_indices(logs_RX.shape[1])
    return np.concatenate([logs_RX, logs_RX[:, one] * logs_RX[:, other]], axis=1)


FLOORS: dict[str, Callable[[ShardIndex, np.ndarray, np.ndarray], np.ndarray]] = {
    "metadata": _metadata,
    "first frame": lambda index, position_R, grey_RTHW: grey_RTHW[:, 0].reshape(len(grey_RTHW), -1),
    "frame differences": lambda index, position_R, grey_RTHW: np.diff(grey_RTHW, axis=1).reshape(
        len(grey_RTHW), -1
    ),
}
"""Features of each floor; the metadata is width, height, number of frames and frame rate."""


def _fold_scores(
    features_RX: np.ndarray, label_R: np.ndarray, group_R: np.ndarray, name: str, seed: int
) -> list[float]:
    """Accuracy on each held-out fold of whole groups."""
    x_RX = torch.from_numpy(features_RX).float()
    y_R = torch.from_numpy(np.unique(label_R, return_inverse=True)[1])
    fold_R = torch.from_numpy(_folds(group_R, seed))
    scores = []
    for fold in range(FOLDS):
        is_held_R = fold_R == fold
        mean_X, std_X = x_RX[~is_held_R].mean(dim=0), x_RX[~is_held_R].std(dim=0)
        scaled_RX = (x_RX - mean_X) / std_X.clamp(min=1e-9)
        penalty = _PENALTY.get(name, _PIXEL_PENALTY)
        predict = fit_logistic(scaled_RX[~is_held_R], y_R[~is_held_R], penalty=penalty)
        scores.append((predict(scaled_RX[is_held_R]) == y_R[is_held_R]).double().mean().item())
    return scores


def _folds(group_R: np.ndarray, seed: int) -> np.ndarray:
    """A fold for each sample: groups in random order, each into the smallest fold so far."""
    groups, number_R = np.unique(group_R, return_inverse=True)
    sizes, total = np.bincount(number_R), np.zeros(FOLDS, dtype=np.int64)
    fold_of = np.empty(len(groups), dtype=np.int64)
    for group in torch.randperm(len(groups), generator=generator(seed, purpose="advise/folds")).tolist():
        fold_of[group] = total.argmin()
        total[fold_of[group]] += sizes[group]
    folds_R: np.ndarray = fold_of[number_R]
    return folds_R


def fit_logistic(x_RX: Tensor, y_R: Tensor, *, penalty: float) -> Callable[[Tensor], Tensor]:
    """Fit a multinomial logistic regression; return a function that predicts classes.

    Minimizes the sum of the cross-entropies plus penalty / 2 times the squared norm of the weights, as
    scikit-learn's with C = 1 / penalty. One thread, since small products on busy cores are slower on more.
    """
    classes = int(y_R.max()) + 1
    weight_XY = x_RX.new_zeros(x_RX.shape[1], classes, requires_grad=True)
    bias_Y = x_RX.new_zeros(classes, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight_XY, bias_Y],
        max_iter=_MAX_ITERATIONS,
        tolerance_grad=1e-4,
        line_search_fn="strong_wolfe",
    )

    def objective() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(x_RX @ weight_XY + bias_Y, y_R, reduction="sum")
        loss = (loss + penalty / 2 * weight_XY.square().sum()) / len(y_R)
        loss.backward()
        return loss

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        optimizer.step(objective)
    finally:
        torch.set_num_threads(threads)
    return lambda of_RX: (of_RX @ weight_XY + bias_Y).argmax(dim=1)
