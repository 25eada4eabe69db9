"""Metrics of features: collapse measures, and the accuracy of a nearest-neighbour classifier."""

import torch
import torch.nn.functional as F
from torch import Tensor

# Relative size below which differences are rounding errors.
_ROUNDING = 1e-5

LEAST = {
    "deviation of the clips' features": 0.005,
    "effective rank of the clips' features": 0.05,
    "effective rank of the tokens": 0.05,
}
"""Fractions of the maximum below which a measure indicates collapse. A rank is not quality.

The features of pixel runs share a large vector: healthy runs have a deviation of a few per cent.
"""


def deviation(x_RD: Tensor) -> float:
    """Standard deviation of each channel over the rows, averaged over channels; 0 if collapsed."""
    return x_RD.double().std(dim=0, correction=0).mean().item()


def effective_rank(x_RD: Tensor) -> float:
    """Effective rank: exp of the entropy of the normalized singular values.

    RankMe (arXiv 2210.02885, section 3) of centred features, since the mean dominates the features of masked
    autoencoders. Equal rows have rank 0.
    """
    x_RD = x_RD.double()
    values_K = torch.linalg.svdvals(x_RD - x_RD.mean(dim=0))
    if values_K.norm() <= _ROUNDING * x_RD.norm():
        return 0.0
    fraction_K = values_K / values_K.sum()
    return torch.special.entr(fraction_K).sum().exp().item()


def mean_cosine(x_RD: Tensor) -> float:
    """Mean cosine over all pairs of rows; 1 if collapsed."""
    unit_RD = F.normalize(x_RD.double(), dim=1)
    rows = len(unit_RD)
    # Square of the sum, minus the pairs of each row with itself.
    return ((unit_RD.sum(dim=0).square().sum() - rows) / (rows * (rows - 1))).item()


def signs_of_collapse(clip_RD: Tensor, token_RD: Tensor) -> dict[str, float]:
    """The measures below `LEAST`, as fractions of their maximum, by name.

    Args:
        clip_RD: features of at least two clips.
        token_RD: single tokens of these clips.
    """
    fractions = (
        deviation(clip_RD) / max(clip_RD.square().mean().sqrt().item(), 1e-12),
        effective_rank(clip_RD) / _largest_rank(clip_RD),
        effective_rank(token_RD) / _largest_rank(token_RD),
    )
    return {
        name: fraction
        for (name, least), fraction in zip(LEAST.items(), fractions, strict=True)
        if fraction < least
    }


def _largest_rank(x_RD: Tensor) -> int:
    return min(len(x_RD) - 1, x_RD.shape[1])


def knn_accuracy(
    train_RD: Tensor, train_label_R: Tensor, test_VD: Tensor, test_label_V: Tensor, *, neighbours: int
) -> float:
    """Accuracy of weighted k-nearest-neighbour classification."""
    cosine_VK, index_VK = nearest_neighbours(train_RD, test_VD, neighbours)
    votes_VY = neighbour_votes(cosine_VK, train_label_R[index_VK], classes=int(train_label_R.max()) + 1)
    return (votes_VY.argmax(dim=1) == test_label_V).double().mean().item()


def nearest_neighbours(train_RD: Tensor, test_VD: Tensor, neighbours: int) -> tuple[Tensor, Tensor]:
    """Cosines and rows of the nearest training rows, nearest first.

    Channels are first standardized over the training rows, since the cosines of raw features are all nearly
    1.

    Returns:
        cosine_VK and index_VK; K is smaller than `neighbours` if there are fewer training rows.
    """
    train_RD, test_VD = unit_rows(train_RD, train_RD), unit_rows(test_VD, train_RD)
    nearest = (test_VD @ train_RD.T).topk(min(neighbours, len(train_RD)), dim=1)
    return nearest.values, nearest.indices


def unit_rows(x_RD: Tensor, reference_RD: Tensor) -> Tensor:
    """Standardize the channels by those of the reference, then scale each row to length 1."""
    mean_D, std_D = reference_RD.mean(dim=0), reference_RD.std(dim=0, correction=0).clamp(min=_ROUNDING)
    return F.normalize((x_RD - mean_D) / std_D, dim=1)


def neighbour_votes(
    cosine_VK: Tensor, label_VK: Tensor, *, classes: int, temperature: float = 0.07
) -> Tensor:
    """Votes of neighbours for classes, votes_VY.

    As in DINO (arXiv 2104.14294, appendix) a neighbour has the weight exp(cosine / temperature).
    """
    votes_VY = cosine_VK.new_zeros(len(cosine_VK), classes)
    return votes_VY.scatter_add_(1, label_VK, (cosine_VK / temperature).exp())
