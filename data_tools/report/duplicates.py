"""Duplicate videos: exact ones by digest, near ones by perceptual hash."""

from collections.abc import Sequence

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from kinemae.data_tools.report.collection import Collection

_ROWS_PER_CHUNK = 64


def exact_duplicates(collection: Collection) -> list[list[int]]:
    """Groups of rows that are the same segment of files with the same digest."""
    values, codes = collection.encoded("content")
    code_R = np.concatenate(codes)
    start_ms = np.round(np.concatenate(collection.columns("start_s")) * 1000)
    groups = groups_of_equal_rows(start_ms, code_R)
    return [group.tolist() for group in groups if values[int(code_R[group[0]])].as_py()]


def near_duplicate_groups(hashes: Sequence[bytes], max_bits: int) -> list[list[int]]:
    """Connected components of the graph whose edges join hashes that differ in at most `max_bits` bits.

    All pairs of distinct hashes are compared: 20,000 hashes take about 10 s on one core.
    """
    if len(hashes) < 2:
        return []
    words_NX = np.frombuffer(b"".join(hashes), np.uint64).reshape(len(hashes), -1)
    distinct_UX, which_N = np.unique(words_NX, axis=0, return_inverse=True)
    edges = []
    for begin in range(0, len(distinct_UX), _ROWS_PER_CHUNK):
        rows_CX = distinct_UX[begin : begin + _ROWS_PER_CHUNK]
        distance_CU = np.zeros((len(rows_CX), len(distinct_UX) - begin), np.uint16)
        for word_C, word_U in zip(rows_CX.T, distinct_UX[begin:].T, strict=True):
            distance_CU += np.bitwise_count(word_C[:, None] ^ word_U)
        edges.append(begin + np.stack(np.nonzero(distance_CU <= max_bits)))
    one, other = np.concatenate(edges, axis=1)
    graph = coo_matrix((np.ones(len(one), bool), (one, other)), shape=(len(distinct_UX),) * 2)
    component_U = connected_components(graph, directed=False)[1]
    return [group.tolist() for group in groups_of_equal_rows(component_U[which_N.ravel()])]


def groups_of_equal_rows(*keys: np.ndarray) -> list[np.ndarray]:
    """Positions that are equal in all keys, in groups of two or more."""
    order = np.lexsort(keys)
    changes = np.zeros(max(len(order) - 1, 0), dtype=bool)
    for key in keys:
        changes |= np.diff(key[order]) != 0
    borders = np.concatenate([[0], np.flatnonzero(changes) + 1, [len(order)]])
    long = np.flatnonzero(np.diff(borders) > 1)
    return [np.sort(order[borders[run] : borders[run + 1]]) for run in long]


def distance(one: bytes, other: bytes) -> int:
    """Hamming distance of two hashes."""
    return (int.from_bytes(one, "big") ^ int.from_bytes(other, "big")).bit_count()
