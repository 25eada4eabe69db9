"""Sets of rows of an index, as bitmaps: 12.5 MB for 100 million rows, and the n-th row in microseconds."""

import hashlib
from collections.abc import Sequence

import numpy as np

_BLOCK_BYTES = 64  # rows per rank: 512
_CHUNK_BYTES = 1 << 18  # of the bitmap, expanded at a time


class RowSet:
    """Some rows of an index, in ascending order.

    Attributes:
        total: number of rows of the index.
        bits: uint8, one bit per row, the lowest bit first, as in Arrow; padded with zeros.
    """

    def __init__(self, bits: np.ndarray, total: int):
        self.total = total
        self.bits = np.zeros(-(-total // (8 * _BLOCK_BYTES)) * _BLOCK_BYTES, dtype=np.uint8)
        self.bits[: len(bits)] = bits
        count_K = np.bitwise_count(self.bits.view(np.uint64)).reshape(-1, _BLOCK_BYTES // 8).sum(axis=1)
        # Rows before each block, then all rows.
        self._rank_K = np.append(0, np.cumsum(count_K, dtype=np.int64))

    @classmethod
    def from_mask(cls, is_in_R: np.ndarray) -> "RowSet":
        """The rows whose value is True; one value per row of the index."""
        return cls(np.packbits(is_in_R, bitorder="little"), len(is_in_R))

    @classmethod
    def without(cls, removed: Sequence[int] | np.ndarray, total: int) -> "RowSet":
        """All rows of an index but some.

        Raises:
            ValueError: a row is outside the index.
        """
        removed_R = np.asarray(removed, dtype=np.int64)
        if len(removed_R) and not 0 <= removed_R.min() <= removed_R.max() < total:
            raise ValueError(f"expected rows below {total}, got {removed_R.min()} to {removed_R.max()}")
        bits = np.full(-(-total // 8), 0xFF, dtype=np.uint8)
        if total % 8:
            bits[-1] = (1 << total % 8) - 1
        np.bitwise_and.at(bits, removed_R >> 3, ~(np.uint8(1) << (removed_R & 7).astype(np.uint8)))
        return cls(bits, total)

    def __len__(self) -> int:
        return int(self._rank_K[-1])

    def row(self, position: int) -> int:
        """The row at a position of the set; `position` must be in range."""
        block = int(np.searchsorted(self._rank_K, position, side="right")) - 1
        byte = block * _BLOCK_BYTES
        bits = np.unpackbits(self.bits[byte : byte + _BLOCK_BYTES], bitorder="little")
        return byte * 8 + int(np.flatnonzero(bits)[position - self._rank_K[block]])

    def rows(self, position_R: np.ndarray) -> np.ndarray:
        """The rows at positions of the set, in any order and with repeats."""
        row_R = np.empty(len(position_R), dtype=np.int64)
        order_R = np.argsort(position_R, kind="stable")
        sorted_R = position_R[order_R]
        for byte in range(0, len(self.bits), _CHUNK_BYTES):
            blocks = byte // _BLOCK_BYTES, min(byte + _CHUNK_BYTES, len(self.bits)) // _BLOCK_BYTES
            first, last = (int(self._rank_K[block]) for block in blocks)
            begin, end = np.searchsorted(sorted_R, (first, last))
            if begin < end:
                chunk = np.unpackbits(self.bits[byte : byte + _CHUNK_BYTES], bitorder="little")
                found = np.flatnonzero(chunk) + 8 * byte
                row_R[order_R[begin:end]] = found[sorted_R[begin:end] - first]
        return row_R

    def mask(self, begin: int = 0, end: int | None = None) -> np.ndarray:
        """Whether each row of the index, or of a range of it, is in the set."""
        end = self.total if end is None else end
        byte = begin // 8
        bits = np.unpackbits(self.bits[byte : -(-end // 8)], bitorder="little")
        return bits[begin - 8 * byte : end - 8 * byte].view(bool)

    def removed(self) -> np.ndarray:
        """The rows of the index that are not in the set, ascending."""
        return np.flatnonzero(~self.mask())

    def subset(self, is_in_R: np.ndarray) -> "RowSet":
        """The rows of this set whose value is True; one value per row of this set."""
        mask_R = self.mask()
        mask_R[mask_R] = is_in_R
        return RowSet.from_mask(mask_R)

    @property
    def digest(self) -> str:
        """Digest of the rows."""
        return hashlib.sha256(self.bits.data).hexdigest()[:16]
