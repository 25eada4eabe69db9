"""Losses of clips: each is computed per clip and is 0 for a clip without a target."""

import torch
from torch import Tensor
from torch.nn import functional

CLASS_WEIGHTS = ("none", "balanced", "effective")


def class_weights(count_Y: Tensor, scheme: str, *, beta: float = 0.999) -> Tensor:
    """Weights of classes from their numbers of training samples, weight_Y, whose mean over samples is 1.

    Args:
        scheme: "none": 1. "balanced": inverse to the number of samples. "effective": inverse to the
            effective number of samples, (1 - beta ** count) / (1 - beta) (arXiv 1901.05555).
    """
    count_Y = count_Y.double()
    if scheme == "none":
        return torch.ones_like(count_Y)
    number_Y = count_Y if scheme == "balanced" else (1 - beta**count_Y) / (1 - beta)
    weight_Y = torch.where(count_Y > 0, 1 / number_Y.clamp(min=1e-12), 0.0)
    return weight_Y * count_Y.sum() / (weight_Y * count_Y).sum()


def smoothed_targets(label_B: Tensor, classes: int, smoothing: float) -> Tensor:
    """Target distributions with label smoothing, target_BY. Negative labels count as class 0."""
    one_hot_BY = functional.one_hot(label_B.clamp(min=0), classes).float()
    return one_hot_BY * (1 - smoothing) + smoothing / classes


def focal_cross_entropy(output_BY: Tensor, target_BY: Tensor, *, gamma: float) -> Tensor:
    """Focal loss of a softmax (arXiv 1708.02002), as loss_B: cross entropy times (1 - p) ** gamma."""
    log_p_BY = functional.log_softmax(output_BY, dim=1)
    return -(target_BY * (1 - log_p_BY.exp()) ** gamma * log_p_BY).sum(dim=1)


def binary_losses(
    output: Tensor,
    target: Tensor,
    *,
    gamma_positive: float = 0.0,
    gamma_negative: float = 0.0,
    margin: float = 0.0,
) -> Tensor:
    """Binary cross entropy of every value, optionally focal or asymmetric.

    Args:
        output: logits.
        target: 0, 1 or between.
        gamma_positive, gamma_negative: exponents of the focal factor for targets 1 and 0. Equal ones give the
            focal loss (arXiv 1708.02002), different ones the asymmetric loss (arXiv 2009.14119).
        margin: probability that is subtracted from that of a negative; then easy negatives have no loss.
    """
    p = torch.sigmoid(output)
    log_p, log_q = functional.logsigmoid(output), functional.logsigmoid(-output)
    q = 1 - p
    if margin > 0:
        q = (q + margin).clamp(max=1)
        log_q = q.log()
    positive = log_p if gamma_positive == 0 else (1 - p) ** gamma_positive * log_p
    negative = log_q if gamma_negative == 0 else (1 - q) ** gamma_negative * log_q
    return -(target * positive + (1 - target) * negative)


def mean_of_known(value_BX: Tensor, is_known_BX: Tensor) -> Tensor:
    """Average each row's known values; 0 for a row without any."""
    total_B = torch.where(is_known_BX, value_BX, 0.0).sum(dim=1)
    return total_B / is_known_BX.sum(dim=1).clamp(min=1)
