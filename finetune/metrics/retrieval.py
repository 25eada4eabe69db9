"""Metrics of retrieval by similarity of embeddings: recall at k, mean average precision, median rank."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from kinemae.finetune.metrics.arrays import Array, as_floats, as_integers, as_number

_CELLS = 1 << 24  # of a block of similarities, 128 MiB


class Embeddings(NamedTuple):
    """Embeddings with their labels.

    Attributes:
        embedding_RD: one row per sample.
        label_R: number of the class; negative if it is missing.
        group: of each sample; "", -1 or None for none. None: no groups.
    """

    embedding_RD: Array
    label_R: Array
    group: Sequence[str] | Array | None = None


def retrieval_metrics(
    query: Embeddings, gallery: Embeddings | None = None, *, ks: Sequence[int] = (1, 5, 10)
) -> dict[str, Any]:
    """Rank the gallery by cosine similarity to each query; items of the query's class are right.

    Items of the query's group are left out. Of equal similarities the first item comes first.

    Args:
        gallery: None: the queries, each without itself.
        ks: numbers of nearest items of the recall.

    Returns:
        "r_at_1" and so on: fraction of the queries with a right item among the k nearest. "map": mean over
        queries of the average precision of the whole ranking. "median_rank": of the first right item, from 1.
        "queries": their number; queries without label or without any right item in the gallery do not count
        and are "queries_without_match". None if no query counts.
    """
    first, precision, without = [], [], 0
    for is_right_J in _rankings(query, gallery):
        rank_H = np.flatnonzero(is_right_J) + 1
        if not len(rank_H):
            without += 1
            continue
        first.append(rank_H[0])
        precision.append(float((np.arange(1, len(rank_H) + 1) / rank_H).mean()))
    first_Q, precision_Q = np.array(first), np.array(precision)
    any_query = len(first_Q) > 0
    return {
        **{f"r_at_{k}": float((first_Q <= k).mean()) if any_query else None for k in ks},
        "map": as_number(precision_Q.mean()) if any_query else None,
        "median_rank": float(np.median(first_Q)) if any_query else None,
        "queries": len(first_Q),
        "queries_without_match": without,
    }


def _rankings(query: Embeddings, gallery: Embeddings | None) -> Iterator[np.ndarray]:
    """Yield for each query whether the allowed items of the gallery, nearest first, have its class."""
    items = query if gallery is None else gallery
    query_QD, item_RD = _normalized(query.embedding_RD), _normalized(items.embedding_RD)
    label_Q, label_R = as_integers(query.label_R), as_integers(items.label_R)
    group_Q, group_R = _group_numbers(query, items)
    rows = max(1, _CELLS // max(1, len(item_RD)))
    for begin in range(0, len(query_QD), rows):
        similarity_QR = query_QD[begin : begin + rows] @ item_RD.T
        for i, similarity_R in enumerate(similarity_QR, start=begin):
            is_allowed_R = (group_R != group_Q[i]) | (group_R < 0)
            if gallery is None:
                is_allowed_R[i] = False
            order_J = np.argsort(-similarity_R[is_allowed_R], kind="stable")
            is_right_R = (label_R[is_allowed_R] == label_Q[i]) & (label_Q[i] >= 0)
            yield is_right_R[order_J]


def _normalized(embedding_RD: Array) -> np.ndarray:
    embedding_RD = as_floats(embedding_RD)
    length_R1 = np.linalg.norm(embedding_RD, axis=1, keepdims=True)
    return embedding_RD / np.maximum(length_R1, np.finfo(np.float64).tiny)


def _group_numbers(query: Embeddings, items: Embeddings) -> tuple[np.ndarray, np.ndarray]:
    """Number the groups of both in common; -1 for none."""
    keys: list[Any] = []
    for each in (query, items):
        groups = [None] * len(each.label_R) if each.group is None else np.asarray(each.group).tolist()
        keys += [None if group == "" or group == -1 else group for group in groups]
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys)) if key is not None}
    number_X = np.array([numbers.get(key, -1) for key in keys], dtype=np.int64)
    return number_X[: len(query.label_R)], number_X[len(query.label_R) :]
