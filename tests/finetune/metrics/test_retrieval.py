"""Retrieval metrics equal a ranking by hand and scikit-learn's average precision."""

import numpy as np
import pytest
import sklearn.metrics as reference
from hypothesis import given
from hypothesis import strategies as st

from kinemae.finetune.metrics import retrieval
from kinemae.finetune.metrics.retrieval import Embeddings, retrieval_metrics
from tests.finetune.metrics.inputs import SEEDS


def ranked_by_hand(query, gallery, *, is_same_set):
    """First right rank and average precision of each query with a right item."""
    found = []
    for i, embedding_D in enumerate(query.embedding_RD):
        rows = []
        for j, other_D in enumerate(gallery.embedding_RD):
            same_group = bool(query.group[i]) and query.group[i] == gallery.group[j]
            if same_group or (is_same_set and i == j):
                continue
            cosine = embedding_D @ other_D / np.linalg.norm(embedding_D) / np.linalg.norm(other_D)
            rows.append((cosine, query.label_R[i] >= 0 and gallery.label_R[j] == query.label_R[i]))
        rows.sort(key=lambda row: -row[0])
        hits = [hit for _, hit in rows]
        if any(hits):
            precision = reference.average_precision_score(hits, [cosine for cosine, _ in rows])
            found.append((hits.index(True) + 1, precision))
    return found


def embeddings(random, samples):
    groups = random.choice(["", "a", "b"], size=samples)
    return Embeddings(random.normal(size=(samples, 4)), random.integers(-1, 3, size=samples), groups)


@given(SEEDS, st.integers(1, 20), st.booleans(), st.sampled_from([1, 7, 1 << 24]))
def test_metrics_equal_a_ranking_by_hand(seed, samples, is_same_set, cells):
    random = np.random.default_rng(seed)
    query = embeddings(random, samples)
    gallery = query if is_same_set else embeddings(random, 9)
    expected = ranked_by_hand(query, gallery, is_same_set=is_same_set)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retrieval, "_CELLS", cells)
        result = retrieval_metrics(query, None if is_same_set else gallery)
    assert result["queries"] == len(expected)
    assert result["queries"] + result["queries_without_match"] == samples
    if expected:
        first = np.array([rank for rank, _ in expected])
        assert result["map"] == pytest.approx(np.mean([precision for _, precision in expected]))
        assert result["median_rank"] == np.median(first)
        for k in (1, 5, 10):
            assert result[f"r_at_{k}"] == pytest.approx((first <= k).mean())
    else:
        assert (result["map"], result["r_at_1"], result["median_rank"]) == (None, None, None)


def test_items_of_the_same_group_are_left_out():
    embedding_RD = np.array([[1.0, 0.0], [1.0, 0.01], [0.8, 0.6], [0.0, 1.0]])
    label_R = np.array([0, 0, 0, 1])
    alone = retrieval_metrics(Embeddings(embedding_RD, label_R))
    assert (alone["r_at_1"], alone["queries"], alone["queries_without_match"]) == (1.0, 3, 1)
    grouped = retrieval_metrics(Embeddings(embedding_RD, label_R, ["x", "x", "", "y"]))
    assert grouped["r_at_1"] == 1.0
    assert retrieval_metrics(Embeddings(embedding_RD, label_R, ["x", "x", "x", "y"]))["queries"] == 0
    numbered = retrieval_metrics(Embeddings(embedding_RD, label_R, np.array([5, 5, -1, 6])))
    assert numbered == grouped
