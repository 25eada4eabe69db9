"""Groups of near-duplicate hashes: all pairs within a Hamming distance, found by banding.

If at most b bits differ, at least two of b + 2 disjoint bands of bits are equal. So near duplicates are next
to each other when hashes are sorted by the values of those two bands. All pairs of bands are tried, so no
pair is missed. Hashes and bands may be in files, see `Arrays`.
"""

import os
from collections.abc import Iterator, Sequence
from itertools import combinations, count
from pathlib import Path

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


class Arrays:
    """Large arrays, in memory or in files of a folder, whose pages the system can drop from memory."""

    def __init__(self, folder: Path | None = None):
        self._folder = folder
        self._numbers = count()

    def empty(self, shape: tuple[int, ...], dtype: type[np.generic]) -> np.ndarray:
        """Allocate an array; its content is undefined."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        if self._folder is None or not size:
            return np.empty(shape, dtype)
        file = self._folder / f"{next(self._numbers)}.array"
        with file.open("wb") as opened:
            os.posix_fallocate(opened.fileno(), 0, size)  # a full disk is an error here, not a crash later
        return np.memmap(file, dtype, "r+", shape=shape)


def read_hashes(index: ShardIndex) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Read the perceptual hashes of a data set, some tens of thousands at a time.

    Yields:
        words_RX: uint64, four words for each hash; position_R: of the samples that have a hash.

    Raises:
        DataError: there is no column of hashes.
    """
    if "phash" not in index.extra:
        raise DataError(
            f"{index.folder}: expected the column phash, got none; fix: make the data set with curate=true"
        )
    begin = 0
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
        words_RX = (digits[::2] << 4 | digits[1::2]).view(np.uint64).reshape(-1, HASH_BITS // 64)
        yield words_RX, begin + np.flatnonzero(is_there)
        begin += len(batch)


def hash_words(hashes: Sequence[bytes]) -> np.ndarray:
    """Hashes as rows of uint64 words."""
    return np.frombuffer(b"".join(hashes), np.uint64).reshape(-1, HASH_BITS // 64)


def near_duplicate_groups(
    words_NX: np.ndarray, max_bits: int, *, all_pairs: int = _ALL_PAIRS, arrays: Arrays | None = None
) -> Iterator[np.ndarray]:
    """Find the connected components of the graph whose edges join hashes that differ in few bits.

    Args:
        words_NX: hashes as uint64 words.
        max_bits: largest difference of two joined hashes.
        all_pairs: number of distinct hashes up to which all pairs are compared.
        arrays: makes the large arrays; None keeps them in memory.
    """
    if len(words_NX) < 2:
        return iter(())
    arrays = arrays or Arrays()
    which_N, words_UX = _distinct(words_NX, arrays)
    component_U = np.arange(len(words_UX), dtype=np.int32)
    few = len(words_UX) <= all_pairs or max_bits > MAX_BITS
    waiting: list[tuple[np.ndarray, np.ndarray]] = []
    pairs = _all_pairs(words_UX, max_bits) if few else _banded_pairs(words_UX, max_bits, arrays)
    for one, other in pairs:
        is_new_E = component_U[one] != component_U[other]
        one, other = one[is_new_E], other[is_new_E]
        is_near_E = np.bitwise_count(words_UX[one] ^ words_UX[other]).sum(axis=1) <= max_bits
        waiting.append((one[is_near_E], other[is_near_E]))
        if sum(len(edges) for edges, _ in waiting) >= (1 if few else _EDGES_AT_ONCE):
            component_U, waiting = _joined(component_U, waiting), []
    component_U = _joined(component_U, waiting)
    return _equal_rows(component_U[which_N])


def _distinct(words_NX: np.ndarray, arrays: Arrays) -> tuple[np.ndarray, np.ndarray]:
    """Position of each hash in the list of distinct hashes, and this list; there are fewer than 2 ** 31."""
    assert len(words_NX) < 1 << 31
    order_N = np.lexsort(words_NX.T)
    which_N = np.empty(len(order_N), np.int32)
    words_UX = arrays.empty(words_NX.shape, np.uint64)
    distinct = 0
    for begin in range(0, len(order_N), _HASHES_AT_ONCE):
        order_C = order_N[begin : begin + _HASHES_AT_ONCE]
        words_CX = words_NX[order_C]
        is_new_C = np.ones(len(words_CX), bool)
        is_new_C[1:] = np.any(words_CX[1:] != words_CX[:-1], axis=1)
        if begin:
            is_new_C[0] = np.any(words_CX[0] != words_UX[distinct - 1])
        which_N[order_C] = distinct - 1 + np.cumsum(is_new_C)
        found = int(is_new_C.sum())
        words_UX[distinct : distinct + found] = words_CX[is_new_C]
        distinct += found
    return which_N, words_UX[:distinct]


def _all_pairs(words_UX: np.ndarray, max_bits: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs whose first word is near."""
    first_U = np.ascontiguousarray(words_UX[:, 0])
    for begin in range(0, len(words_UX), _ROWS_PER_CHUNK):
        first_C = first_U[begin : begin + _ROWS_PER_CHUNK, None]
        one, other = np.nonzero(np.bitwise_count(first_C ^ first_U[begin:]) <= max_bits)
        yield begin + one, begin + other


def _banded_pairs(
    words_UX: np.ndarray, max_bits: int, arrays: Arrays
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs that are equal in two bands."""
    bands_AU = _bands(words_UX, max_bits + 2, arrays)
    number_U = np.arange(len(words_UX), dtype=np.uint32)
    packed_U = np.empty(len(words_UX), np.uint64)  # the values of two bands, then the number of the hash
    for one, other in combinations(range(len(bands_AU)), 2):
        packed_U[:] = bands_AU[one]
        for part, bits in ((bands_AU[other], 16), (number_U, 32)):
            packed_U <<= np.uint64(bits)
            packed_U |= part
        packed_U.sort()  # several times as fast as argsort
        first, step = _with_equal_next(packed_U), 1
        while len(first):
            yield _number(packed_U[first]), _number(packed_U[first + step])
            step += 1
            first = first[: np.searchsorted(first, len(packed_U) - step)]
            first = first[packed_U[first] >> np.uint64(32) == packed_U[first + step] >> np.uint64(32)]


def _number(packed: np.ndarray) -> np.ndarray:
    return (packed & np.uint64(0xFFFFFFFF)).astype(np.int32)


def _with_equal_next(packed_U: np.ndarray) -> np.ndarray:
    """Positions at which the bands are equal to those of the next position."""
    found = [
        begin + np.flatnonzero(packed_U[begin + 1 : begin + 1 + len(part)] ^ part < np.uint64(1 << 32))
        for begin in range(0, len(packed_U) - 1, _HASHES_AT_ONCE)
        for part in [packed_U[begin : min(begin + _HASHES_AT_ONCE, len(packed_U) - 1)]]
    ]
    return np.concatenate([np.empty(0, np.int64), *found])


def _bands(words_UX: np.ndarray, count: int, arrays: Arrays) -> np.ndarray:
    """Disjoint bands of bits as uint16. Bits are drawn, because neighbouring bits are similar."""
    bits = np.random.default_rng(0).permutation(64 * words_UX.shape[1])
    width = min(len(bits) // count, _MAX_BAND_BITS)
    bands_AU = arrays.empty((count, len(words_UX)), np.uint16)
    for begin in range(0, len(words_UX), _HASHES_AT_ONCE):
        words_XC = np.ascontiguousarray(words_UX[begin : begin + _HASHES_AT_ONCE].T)
        for number, band_U in enumerate(bands_AU):
            part = np.zeros(words_XC.shape[1], np.uint16)
            for place, bit in enumerate(bits[number * width : (number + 1) * width].tolist()):
                part |= (words_XC[bit // 64] >> np.uint64(bit % 64) & np.uint64(1)).astype(np.uint16) << place
            band_U[begin : begin + _HASHES_AT_ONCE] = part
    return bands_AU


def _joined(component_U: np.ndarray, edges: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Join the components of the two ends of each edge."""
    if not edges:
        return component_U
    one_E, other_E = (np.concatenate(ends) for ends in zip(*edges, strict=True))
    ends = component_U[one_E], component_U[other_E]
    graph = coo_matrix((np.ones(len(one_E), bool), ends), shape=(len(component_U),) * 2)
    joined_U: np.ndarray = connected_components(graph, directed=False)[1][component_U]
    return joined_U.astype(np.int32, copy=False)


def groups_of_equal_rows(*keys: np.ndarray) -> list[np.ndarray]:
    """Positions that are equal in all keys, in groups of two or more."""
    return list(_equal_rows(*keys))


def _equal_rows(*keys: np.ndarray) -> Iterator[np.ndarray]:
    """See `groups_of_equal_rows`; one at a time, since there may be millions."""
    order = np.lexsort(keys)
    changes = np.zeros(max(len(order) - 1, 0), dtype=bool)
    for key in keys:
        changes |= np.diff(key[order]) != 0
    borders = np.concatenate([[0], np.flatnonzero(changes) + 1, [len(order)]])
    for run in np.flatnonzero(np.diff(borders) > 1):
        yield np.sort(order[borders[run] : borders[run + 1]])


def distances(words_X: np.ndarray, words_NX: np.ndarray) -> np.ndarray:
    """Hamming distances of a hash to others."""
    counts: np.ndarray = np.bitwise_count(words_X ^ words_NX).sum(axis=1, dtype=np.int64)
    return counts
