"""Duplicate detection: exact duplicates by digest, near-duplicates by perceptual hash."""

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

    All pairs of distinct hashes are compared: 20,000 hashes take about 1 s on one core.
    """
    if len(hashes) < 2:
        return []
    words_NX = np.frombuffer(b"".join(hashes), np.uint64).reshape(len(hashes), -1)
    words_UX, which_N = np.unique(words_NX, axis=0, return_inverse=True)
    component_U = np.arange(len(words_UX))
    first_U = np.ascontiguousarray(words_UX[:, 0])
    for begin in range(0, len(words_UX), _ROWS_PER_CHUNK):
        first_C = first_U[begin : begin + _ROWS_PER_CHUNK, None]
        # The first word excludes most pairs, and the components found so far exclude most of the others.
        is_near_CU = np.bitwise_count(first_C ^ first_U[begin:]) <= max_bits
        one, other = begin + np.stack(np.nonzero(is_near_CU))
        is_new_E = component_U[one] != component_U[other]
        one, other = one[is_new_E], other[is_new_E]
        is_near_E = np.bitwise_count(words_UX[one] ^ words_UX[other]).sum(axis=1) <= max_bits
        if is_near_E.any():
            component_U = _joined(component_U, one[is_near_E], other[is_near_E])
    return [group.tolist() for group in groups_of_equal_rows(component_U[which_N.ravel()])]


def _joined(component_U: np.ndarray, one_E: np.ndarray, other_E: np.ndarray) -> np.ndarray:
    """Join the components of the two ends of each edge."""
    ends = component_U[one_E], component_U[other_E]
    graph = coo_matrix((np.ones(len(one_E), bool), ends), shape=(len(component_U),) * 2)
    joined_U: np.ndarray = connected_components(graph, directed=False)[1][component_U]
    return joined_U


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
