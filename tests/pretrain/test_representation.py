"""Metrics of a representation, against numpy and known answers."""

import numpy as np
import pytest
import torch
from torch import Tensor

from kinemae.pretrain.representation import (
    deviation,
    effective_rank,
    knn_accuracy,
    mean_cosine,
    signs_of_collapse,
)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_the_metrics_equal_those_of_numpy() -> None:
    x_RD = normal(9, 5) * torch.tensor([1.0, 2.0, 3.0, 0.1, 0.5]) + 0.7
    x = x_RD.double().numpy()
    assert deviation(x_RD) == pytest.approx(x.std(axis=0).mean())
    values = np.linalg.svd(x - x.mean(axis=0), compute_uv=False)
    share = values / values.sum()
    assert effective_rank(x_RD) == pytest.approx(np.exp(-(share * np.log(share)).sum()))
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    pairs = [unit[i] @ unit[j] for i in range(9) for j in range(9) if i != j]
    assert mean_cosine(x_RD) == pytest.approx(np.mean(pairs))


def test_features_along_one_line_have_rank_one() -> None:
    line_RD = normal(20, 1) * normal(1, 12, seed=1) + 3.0
    assert effective_rank(line_RD) == pytest.approx(1.0, abs=1e-4)


def test_n_equal_directions_have_rank_n() -> None:
    corners_RD = torch.cat([torch.eye(6), -torch.eye(6)])
    assert effective_rank(corners_RD) == pytest.approx(6.0)


def test_a_large_common_vector_does_not_change_the_rank() -> None:
    corners_RD = torch.cat([torch.eye(6), -torch.eye(6)])
    assert effective_rank(corners_RD + 100.0) == pytest.approx(6.0, rel=1e-4)


def test_equal_features_are_collapsed_in_all_metrics() -> None:
    same_RD = normal(1, 16).expand(10, -1)
    assert deviation(same_RD) == pytest.approx(0.0, abs=1e-7)
    assert mean_cosine(same_RD) == pytest.approx(1.0)
    assert effective_rank(same_RD) == 0.0
    assert (
        effective_rank(same_RD + 1e-8 * normal(10, 16, seed=1)) == 0.0
    )  # rounding errors do not count as a direction


def test_collapse_has_signs_and_usual_features_have_none() -> None:
    clip_RD, token_RD = normal(32, 64) + 1.0, normal(512, 64, seed=1) + 1.0
    assert signs_of_collapse(clip_RD, token_RD) == {}
    line_RD = normal(512, 1) * normal(1, 64, seed=1)
    deviates, clips_rank, tokens_rank = (
        "deviation of the clips' features",
        "effective rank of the clips' features",
        "effective rank of the tokens",
    )
    assert signs_of_collapse(clip_RD, line_RD).keys() == {tokens_rank}
    assert signs_of_collapse(line_RD[:32], token_RD).keys() == {clips_rank}
    assert signs_of_collapse(0.001 * clip_RD + 1.0, token_RD).keys() == {deviates}
    same_RD = torch.ones(32, 64)
    assert signs_of_collapse(same_RD, same_RD) == {deviates: 0.0, clips_rank: 0.0, tokens_rank: 0.0}


def test_a_large_common_vector_as_in_pixel_runs_is_no_collapse() -> None:
    """The demo's pixel run has a mean cosine of 0.998, a rank of 17 of 31 and a probe far above chance."""
    clip_RD, token_RD = 0.04 * normal(32, 96) + 1.0, 0.1 * normal(512, 96, seed=1) + 1.0
    assert mean_cosine(clip_RD) == pytest.approx(0.998, abs=1e-3)
    assert signs_of_collapse(clip_RD, token_RD) == {}


def test_orthogonal_features_have_cosine_zero() -> None:
    assert mean_cosine(5 * torch.eye(7)) == pytest.approx(0.0, abs=1e-12)


def test_knn_classifies_separable_classes() -> None:
    label_R = torch.arange(60) % 3
    centres = 4 * normal(3, 8, seed=1)
    train_RD, test_VD = (centres[label_R] + 0.1 * normal(60, 8, seed=seed) for seed in (2, 3))
    assert knn_accuracy(train_RD, label_R, test_VD, label_R, neighbours=10) == 1.0


def test_knn_classifies_nearly_equal_features() -> None:
    """As for masked autoencoders, all raw cosines are above 0.9999."""
    label_R = torch.arange(60) % 2
    common_D = 100 * normal(1, 8, seed=1)
    signal_D = torch.tensor([0.1, *[0.0] * 7])
    train_RD, test_VD = (
        common_D + (2 * label_R[:, None] - 1) * signal_D + 0.01 * normal(60, 8, seed=seed) for seed in (2, 3)
    )
    assert mean_cosine(train_RD) > 0.9999
    assert knn_accuracy(train_RD, label_R, test_VD, label_R, neighbours=10) > 0.9


def test_knn_on_shuffled_labels_is_at_chance() -> None:
    label_R = torch.randint(4, (400,), generator=torch.Generator().manual_seed(5))
    accuracy = knn_accuracy(normal(400, 8), label_R, normal(400, 8, seed=1), label_R, neighbours=20)
    assert accuracy == pytest.approx(0.25, abs=0.08)  # 3.7 standard deviations of a guess


def test_nearer_neighbours_count_more_and_few_rows_are_enough() -> None:
    """Two far rows of one class against a near one of the other, with fewer rows than neighbours."""
    train_RD = torch.tensor([[1.0, 0.1], [-1.0, 1.0], [-1.0, -1.0]])
    accuracy = knn_accuracy(
        train_RD, torch.tensor([1, 0, 0]), torch.tensor([[1.0, 0.0]]), torch.tensor([1]), neighbours=10
    )
    assert accuracy == 1.0
