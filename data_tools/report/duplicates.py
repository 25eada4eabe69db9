"""Duplicate videos: exact ones by digest, near ones by perceptual hash."""

from collections.abc import Iterator, Sequence

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from kinemae.data_tools.report.collection import Collection, groups_of_equal_rows

# Hashes are split into bands of 16 bits. Two hashes of 16 bands that differ in at most 31 bits have a band
# that differs in at most one bit. A lookup of every band and its 16 one-bit neighbours finds all such pairs.
BAND_BITS = 16
_PAIRS_PER_CHUNK = 1 << 21


def max_distance(hash_bits: int) -> int:
    """The largest distance at which `near_duplicate_groups` finds all pairs."""
    return 2 * (hash_bits // BAND_BITS) - 1


def exact_duplicates(collection: Collection) -> list[list[int]]:
    """Groups of rows that are the same segment of files with the same digest."""
    values, codes = collection.encoded("content")
    code_R = np.concatenate(codes)
    start_ms = np.round(np.concatenate(collection.columns("start_s")) * 1000)
    groups = groups_of_equal_rows(start_ms, code_R)
    return [group.tolist() for group in groups if values[int(code_R[group[0]])].as_py()]


def near_duplicate_groups(hashes: Sequence[bytes], max_bits: int) -> list[list[int]]:
    """Connected components of the graph whose edges join hashes that differ in at most `max_bits` bits.

    The cost grows with the number of near duplicates, not with the square of the number of hashes.
    """
    if len(hashes) < 2:
        return []
    bytes_NX = np.frombuffer(b"".join(hashes), np.uint8).reshape(len(hashes), -1)
    distinct_UX, which_N = np.unique(bytes_NX, axis=0, return_inverse=True)
    words_UX = np.ascontiguousarray(distinct_UX).view(np.uint16)
    assert max_bits <= max_distance(8 * bytes_NX.shape[1])
    pairs = list(_near_pairs(words_UX, max_bits))
    rows, columns = np.concatenate(pairs, axis=1) if pairs else np.zeros((2, 0), np.int64)
    graph = coo_matrix((np.ones(len(rows), bool), (rows, columns)), shape=(len(words_UX),) * 2)
    component_U = connected_components(graph, directed=False)[1]
    return [group.tolist() for group in groups_of_equal_rows(component_U[which_N.ravel()])]


def distance(one: bytes, other: bytes) -> int:
    """Hamming distance of two hashes."""
    return (int.from_bytes(one, "big") ^ int.from_bytes(other, "big")).bit_count()


def _near_pairs(words_UX: np.ndarray, max_bits: int) -> Iterator[np.ndarray]:
    """Yield (2, n) arrays of pairs; a pair may occur several times."""
    flips = [np.uint16(0)] + [np.uint16(1 << bit) for bit in range(BAND_BITS)]
    for word_U in words_UX.T:
        order = np.argsort(word_U, kind="stable")
        sorted_U = word_U[order]
        for flip in flips:
            left = np.searchsorted(sorted_U, word_U ^ flip, side="left")
            right = np.searchsorted(sorted_U, word_U ^ flip, side="right")
            for first, second in _expanded(left, right, order):
                apart = np.bitwise_count(words_UX[first] ^ words_UX[second]).sum(axis=1)
                near = (apart <= max_bits) & (first < second)
                if near.any():
                    yield np.stack([first[near], second[near]])


def _expanded(left: np.ndarray, right: np.ndarray, order: np.ndarray) -> Iterator[tuple[np.ndarray, ...]]:
    """Yield pairs of every row with the rows `order[left:right]`, some millions at a time."""
    counts = right - left
    ends = np.cumsum(counts)
    begin = 0
    while begin < len(counts):
        done = ends[begin - 1] if begin else 0
        end = max(int(np.searchsorted(ends, done + _PAIRS_PER_CHUNK, side="right")), begin + 1)
        chunk = counts[begin:end]
        first = np.repeat(np.arange(begin, end), chunk)
        within = np.arange(chunk.sum()) - np.repeat(np.cumsum(chunk) - chunk, chunk)
        yield first, order[np.repeat(left[begin:end], chunk) + within]
        begin = end
