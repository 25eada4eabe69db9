"""Measures of a representation, all from features to a number; the last one needs labels."""

import torch
import torch.nn.functional as F
from torch import Tensor

# Below this share of the features' own size, what differs between them is rounding.
_ROUNDING = 1e-5


def deviation(x_RD: Tensor) -> float:
    """Each channel's standard deviation over the rows, averaged over the channels; 0 has collapsed."""
    return x_RD.double().std(dim=0, correction=0).mean().item()


def effective_rank(x_RD: Tensor) -> float:
    """How many directions the rows use: exp of the entropy of the shares of the singular values.

    RankMe (arXiv 2210.02885, section 3), but of centred features: what a masked autoencoder gives for any two
    clips is nearly the same, and that common part would hide all others. Rows that do not differ have rank 0.
    """
    x_RD = x_RD.double()
    values_K = torch.linalg.svdvals(x_RD - x_RD.mean(dim=0))
    if values_K.norm() <= _ROUNDING * x_RD.norm():
        return 0.0
    share_K = values_K / values_K.sum()
    return torch.special.entr(share_K).sum().exp().item()


def mean_cosine(x_RD: Tensor) -> float:
    """The cosine between two rows, averaged over all pairs of different rows; 1 has collapsed."""
    unit_RD = F.normalize(x_RD.double(), dim=1)
    rows = len(unit_RD)
    # All pairs at once: the square of the sum, less each row with itself.
    return ((unit_RD.sum(dim=0).square().sum() - rows) / (rows * (rows - 1))).item()


def knn_accuracy(
    train_RD: Tensor, train_label_R: Tensor, test_VD: Tensor, test_label_V: Tensor, *, neighbours: int
) -> float:
    """The share of test rows whose label their nearest training rows tell.

    Weighted voting as DINO has it (arXiv 2104.14294, appendix): a neighbour counts exp(cosine / 0.07).
    Channels are first brought to mean 0 and deviation 1 over the training rows, since the cosines of raw
    features of a masked autoencoder are all nearly 1.
    """
    mean_D, std_D = train_RD.mean(dim=0), train_RD.std(dim=0, correction=0).clamp(min=_ROUNDING)
    train_RD, test_VD = (F.normalize((x - mean_D) / std_D, dim=1) for x in (train_RD, test_VD))
    nearest = (test_VD @ train_RD.T).topk(min(neighbours, len(train_RD)), dim=1)
    votes_VY = test_VD.new_zeros(len(test_VD), int(train_label_R.max()) + 1)
    votes_VY.scatter_add_(1, train_label_R[nearest.indices], (nearest.values / 0.07).exp())
    return (votes_VY.argmax(dim=1) == test_label_V).double().mean().item()
