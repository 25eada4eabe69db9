"""Groups of near-duplicate hashes: all pairs within a Hamming distance, found by banding.

If at most b bits differ, at least two of b + 2 disjoint bands of bits are equal. So near duplicates are next
to each other when hashes are sorted by the values of those two bands. All pairs of bands are tried, so no
pair is missed.
"""

from collections.abc import Iterator, Sequence
from itertools import combinations

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from kinemae.data_tools.command import DataError
from kinemae.data_tools.curation.frame_stats import HASH_BITS
from kinemae.data_tools.index import ShardIndex

MAX_BITS = 32
_ALL_PAIRS = 4096  # of fewer hashes, all pairs are compared
_ROWS_PER_CHUNK = 64
_MAX_BAND_BITS = 16
_EDGES_AT_ONCE = 1 << 22
_HASHES_AT_ONCE = 1 << 20
_DIGITS = np.full(256, 255, np.uint8)
_DIGITS[np.frombuffer(b"0123456789abcdef", np.uint8)] = np.arange(16)


def read_hashes(index: ShardIndex) -> tuple[np.ndarray, np.ndarray]:
    """The perceptual hashes of a data set, and the positions of the samples that have one.

    Returns:
        words_RX: uint64, four words for each hash; position_R.

    Raises:
        DataError: there is no column of hashes.
    """
    if "phash" not in index.extra:
        raise DataError(
            f"{index.folder}: expected the column phash, got none; fix: make the data set with curate=true"
        )
    words, positions, begin = [np.empty((0, HASH_BITS // 64), np.uint64)], [np.empty(0, np.int64)], 0
    for batch in index.batches(["phash"]):
        column = batch.column(0)
        is_there = column.is_valid().to_numpy(zero_copy_only=False)
        texts = column.drop_null().to_pylist()
        digits = _DIGITS[np.frombuffer("".join(texts).encode(), np.uint8)]
        if {len(text) for text in texts} - {HASH_BITS // 4} or (digits > 15).any():
            raise DataError(
                f"{index.folder}: expected {HASH_BITS // 4} hexadecimal digits in phash, got another text; "
                "fix: make the data set again"
            )
        words.append((digits[::2] << 4 | digits[1::2]).view(np.uint64).reshape(-1, HASH_BITS // 64))
        positions.append(begin + np.flatnonzero(is_there))
        begin += len(batch)
    return np.concatenate(words), np.concatenate(positions)


def hash_words(hashes: Sequence[bytes]) -> np.ndarray:
    """Hashes as rows of uint64 words."""
    return np.frombuffer(b"".join(hashes), np.uint64).reshape(-1, HASH_BITS // 64)


def near_duplicate_groups(
    words_NX: np.ndarray, max_bits: int, *, all_pairs: int = _ALL_PAIRS
) -> list[np.ndarray]:
    """Connected components of the graph whose edges join hashes that differ in at most `max_bits` bits.

    Args:
        words_NX: hashes as uint64 words.
        all_pairs: number of distinct hashes up to which all pairs are compared.
    """
    if len(words_NX) < 2:
        return []
    order = np.lexsort(words_NX.T)
    is_new = np.any(words_NX[order[1:]] != words_NX[order[:-1]], axis=1)
    which_N = np.empty(len(order), np.int64)
    which_N[order] = np.concatenate([[0], np.cumsum(is_new)])
    words_UX = words_NX[order[np.concatenate([[True], is_new])]]
    component_U = np.arange(len(words_UX))
    few = len(words_UX) <= all_pairs or max_bits > MAX_BITS
    waiting: list[tuple[np.ndarray, np.ndarray]] = []
    for one, other in _all_pairs(words_UX, max_bits) if few else _banded_pairs(words_UX, max_bits):
        is_new_E = component_U[one] != component_U[other]
        one, other = one[is_new_E], other[is_new_E]
        is_near_E = np.bitwise_count(words_UX[one] ^ words_UX[other]).sum(axis=1) <= max_bits
        waiting.append((one[is_near_E], other[is_near_E]))
        if sum(len(edges) for edges, _ in waiting) >= (1 if few else _EDGES_AT_ONCE):
            component_U, waiting = _joined(component_U, waiting), []
    component_U = _joined(component_U, waiting)
    return groups_of_equal_rows(component_U[which_N])


def _all_pairs(words_UX: np.ndarray, max_bits: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs whose first word is near."""
    first_U = np.ascontiguousarray(words_UX[:, 0])
    for begin in range(0, len(words_UX), _ROWS_PER_CHUNK):
        first_C = first_U[begin : begin + _ROWS_PER_CHUNK, None]
        one, other = np.nonzero(np.bitwise_count(first_C ^ first_U[begin:]) <= max_bits)
        yield begin + one, begin + other


def _banded_pairs(words_UX: np.ndarray, max_bits: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs that are equal in two bands."""
    bands = _bands(words_UX, max_bits + 2)
    number_U = np.arange(len(words_UX), dtype=np.uint64)
    for one_band, other_band in combinations(bands, 2):
        value_U = one_band.astype(np.uint32) << 16 | other_band
        packed_U = value_U.astype(np.uint64) << 32 | number_U
        packed_U.sort()  # several times as fast as argsort
        value_U, order = packed_U >> 32, (packed_U & 0xFFFFFFFF).astype(np.int64)
        first, step = np.flatnonzero(value_U[1:] == value_U[:-1]), 1
        while len(first):
            yield order[first], order[first + step]
            step += 1
            first = first[: np.searchsorted(first, len(order) - step)]
            first = first[value_U[first] == value_U[first + step]]


def _bands(words_UX: np.ndarray, count: int) -> list[np.ndarray]:
    """Disjoint bands of bits as uint16. Bits are drawn, because neighbouring bits are similar."""
    bits = np.random.default_rng(0).permutation(64 * words_UX.shape[1])
    width = min(len(bits) // count, _MAX_BAND_BITS)
    bands = [np.zeros(len(words_UX), np.uint16) for _ in range(count)]
    for begin in range(0, len(words_UX), _HASHES_AT_ONCE):
        words_XC = np.ascontiguousarray(words_UX[begin : begin + _HASHES_AT_ONCE].T)
        for number, band in enumerate(bands):
            part = band[begin : begin + _HASHES_AT_ONCE]
            for place, bit in enumerate(bits[number * width : (number + 1) * width].tolist()):
                part |= (words_XC[bit // 64] >> np.uint64(bit % 64) & np.uint64(1)).astype(np.uint16) << place
    return bands


def _joined(component_U: np.ndarray, edges: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Join the components of the two ends of each edge."""
    if not edges:
        return component_U
    one_E, other_E = (np.concatenate(ends) for ends in zip(*edges, strict=True))
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


def distances(words_X: np.ndarray, words_NX: np.ndarray) -> np.ndarray:
    """Hamming distances of a hash to others."""
    counts: np.ndarray = np.bitwise_count(words_X ^ words_NX).sum(axis=1, dtype=np.int64)
    return counts
