"""Weighted nearest neighbours on pooled features."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kinemae.finetune.probe.data import LabelledFeatures
from kinemae.finetune.tasks.base import SamplePrediction
from kinemae.finetune.tasks.classification import Classification
from kinemae.pretrain.representation import nearest_neighbours, neighbour_votes

_DEFAULT = (10, 20, 100, 200)
_ROWS_AT_ONCE = 1024


@dataclass(frozen=True, kw_only=True)
class Neighbours:
    """The nearest training views of all views of some samples.

    Attributes:
        data, sample_R: the samples.
        cosine_RVK: cosines, nearest first; float64, so that votes do not overflow at low temperatures.
        label_RVK: classes of the neighbours.
    """

    data: LabelledFeatures
    sample_R: np.ndarray
    cosine_RVK: Tensor
    label_RVK: Tensor

    def predictions(self, task: Classification, *, k: int, temperature: float) -> list[SamplePrediction]:
        """Predict each sample: the mean over its views of the normalized votes of k neighbours."""
        rows, views, _ = self.cosine_RVK.shape
        # Weights relative to the nearest neighbour; the normalization removes the factor.
        cosine_RVK = self.cosine_RVK[..., :k] - self.cosine_RVK[..., :1]
        votes_XY = neighbour_votes(
            cosine_RVK.flatten(0, 1),
            self.label_RVK[..., :k].flatten(0, 1),
            classes=task.outputs,
            temperature=temperature,
        )
        share_RVY = (votes_XY / votes_XY.sum(dim=1, keepdim=True)).view(rows, views, -1)
        return [
            self.data.prediction(task, int(position), share_VY)
            for position, share_VY in zip(self.sample_R, share_RVY, strict=True)
        ]


def find_neighbours(
    train: tuple[LabelledFeatures, np.ndarray],
    test: tuple[LabelledFeatures, np.ndarray],
    *,
    layer: int,
    pool: str,
    most: int,
) -> Neighbours:
    """Find the nearest training views of the views of other samples.

    Args:
        train, test: data set and positions of samples.
        most: number of neighbours.
    """
    (source, train_R), (data, sample_R) = train, test
    train_RVX = source.features.pooled(layer, pool, train_R)
    labels = torch.tensor([source.targets.of_sample(int(position))["label"] for position in train_R])
    label_X = labels.repeat_interleave(train_RVX.shape[1])
    view_XD = data.features.pooled(layer, pool, sample_R).flatten(0, 1)
    parts = [
        nearest_neighbours(train_RVX.flatten(0, 1), part_XD, most) for part_XD in view_XD.split(_ROWS_AT_ONCE)
    ]
    cosine_XK, index_XK = (torch.cat(column) for column in zip(*parts, strict=True))
    shape = (len(sample_R), data.features.views, -1)
    return Neighbours(
        data=data,
        sample_R=sample_R,
        cosine_RVK=cosine_XK.double().view(shape),
        label_RVK=label_X[index_XK].view(shape),
    )


def neighbour_counts(given: Sequence[int] | None, samples: int) -> list[int]:
    """The numbers of neighbours to try; by default those of 10, 20, 100 and 200 that the data has.

    Raises:
        ValueError: a given number is above the samples.
    """
    if given is None:
        return [k for k in _DEFAULT if k <= samples] or [samples]
    if max(given) > samples:
        raise ValueError(
            f"knn.k: expected at most {samples}, the training samples without the held-out part, got "
            f"{max(given)}; fix: lower it"
        )
    return list(given)
