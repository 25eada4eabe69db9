"""Videos that are there twice: the same bytes, the same pictures, or one group in two splits."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from kinemae.data_tools.report.collection import Collection, runs_of_equals

# Hashes are cut into bands of 16 bits. Two hashes of 16 bands that differ in at most 31 bits have a band that
# differs in at most one bit, so looking up every band and its 16 neighbours finds all such pairs.
BAND_BITS = 16
_PAIRS_AT_ONCE = 1 << 21


@dataclass(frozen=True, kw_only=True)
class Leak:
    """A value that stands in several splits: the first sample of each, and how many samples have it."""

    value: str
    places: tuple[int, ...]
    samples: int


def most_bits_found(hash_bits: int) -> int:
    """The largest distance at which `near_groups` misses no pair."""
    return 2 * (hash_bits // BAND_BITS) - 1


def exact_groups(collection: Collection) -> list[list[int]]:
    """Places of samples that are the same part of files with the same bytes, a list for each of them."""
    values, codes = collection.coded("content")
    start_ms = np.round(np.concatenate(collection.columns("start_s")) * 1000)
    groups = runs_of_equals(start_ms, np.concatenate(codes))
    return [group.tolist() for group in groups if values[codes_at(codes, group[0])].as_py()]


def codes_at(codes: Sequence[np.ndarray], place: int) -> int:
    """The code of one place, without joining the arrays."""
    for of_split in codes:
        if place < len(of_split):
            return int(of_split[place])
        place -= len(of_split)
    raise AssertionError("a place outside the collection")


def leaks(collection: Collection, column: str) -> list[Leak]:
    """Values of a text column that samples of more than one split have."""
    values, codes = collection.coded(column)
    kinds = [np.unique(of_split, return_index=True, return_counts=True) for of_split in codes]
    split_count = np.zeros(len(values), dtype=np.int32)
    for present, _, _ in kinds:
        split_count[present[present >= 0]] += 1
    found = []
    for code in np.flatnonzero(split_count > 1):
        if not (value := values[int(code)].as_py()):
            continue
        places, samples = [], 0
        for offset, (present, first, count) in zip(collection.offsets, kinds, strict=False):
            at = int(np.searchsorted(present, code))
            if at < len(present) and present[at] == code:
                places.append(offset + int(first[at]))
                samples += int(count[at])
        found.append(Leak(value=value, places=tuple(places), samples=samples))
    return found


def near_groups(hashes: Sequence[bytes], most_bits: int) -> list[list[int]]:
    """Positions of hashes that hang together by steps of at most `most_bits` differing bits.

    The work grows with the number of look-alikes, not with the square of the number of hashes.
    """
    if len(hashes) < 2:
        return []
    bytes_NX = np.frombuffer(b"".join(hashes), np.uint8).reshape(len(hashes), -1)
    distinct_UX, which_N = np.unique(bytes_NX, axis=0, return_inverse=True)
    words_UX = np.ascontiguousarray(distinct_UX).view(np.uint16)
    assert most_bits <= most_bits_found(8 * bytes_NX.shape[1])
    pairs = [pair for pair in _near_pairs(words_UX, most_bits)]
    rows, columns = np.concatenate(pairs, axis=1) if pairs else np.zeros((2, 0), np.int64)
    graph = coo_matrix((np.ones(len(rows), bool), (rows, columns)), shape=(len(words_UX),) * 2)
    component_U = connected_components(graph, directed=False)[1]
    return [group.tolist() for group in runs_of_equals(component_U[which_N.ravel()])]


def distance(one: bytes, other: bytes) -> int:
    """Bits in which two hashes differ."""
    return (int.from_bytes(one, "big") ^ int.from_bytes(other, "big")).bit_count()


def _near_pairs(words_UX: np.ndarray, most_bits: int) -> Iterator[np.ndarray]:
    """(2, n) arrays of pairs; a pair may come several times."""
    flips = [np.uint16(0)] + [np.uint16(1 << bit) for bit in range(BAND_BITS)]
    for word_U in words_UX.T:
        order = np.argsort(word_U, kind="stable")
        sorted_U = word_U[order]
        for flip in flips:
            left = np.searchsorted(sorted_U, word_U ^ flip, side="left")
            right = np.searchsorted(sorted_U, word_U ^ flip, side="right")
            for first, second in _expanded(left, right, order):
                apart = np.bitwise_count(words_UX[first] ^ words_UX[second]).sum(axis=1)
                near = (apart <= most_bits) & (first < second)
                if near.any():
                    yield np.stack([first[near], second[near]])


def _expanded(left: np.ndarray, right: np.ndarray, order: np.ndarray) -> Iterator[tuple[np.ndarray, ...]]:
    """Pairs of every row with the rows `order[left:right]`, some millions at a time."""
    counts = right - left
    ends = np.cumsum(counts)
    begin = 0
    while begin < len(counts):
        done = ends[begin - 1] if begin else 0
        end = max(int(np.searchsorted(ends, done + _PAIRS_AT_ONCE, side="right")), begin + 1)
        part = counts[begin:end]
        first = np.repeat(np.arange(begin, end), part)
        within = np.arange(part.sum()) - np.repeat(np.cumsum(part) - part, part)
        yield first, order[np.repeat(left[begin:end], part) + within]
        begin = end
