"""Systematic sampling: samples in proportion to a column of weights."""

from collections.abc import Iterator, Sequence

import numpy as np

from kinemae.data_tools.command import DataError
from kinemae.data_tools.conditions import check_columns
from kinemae.data_tools.index import ShardIndex
from kinemae.data_tools.randomness import derived_seed
from kinemae.data_tools.stream.setting_names import CONFIG_KEYS, SettingNames

_BLOCK = 1024  # samples whose weights are summed; only the sums are in memory
_LARGEST = 1 << 30  # weights become integers up to this one, so that every machine computes equal sums
_GOLDEN = 0x9E3779B97F4A7C15  # of 2^64


class SystematicSampling:
    """Choose samples in proportion to their weights, as a function of (seed, epoch, slot).

    The weights lie one after the other on a line. The slots of an epoch are points at equal distances on it,
    as many as there are samples. So a sample with r times the mean weight comes r times per epoch, rounded
    down or up. The points move from epoch to epoch by the golden ratio of their distance, so that over many
    epochs it comes r times per epoch. With equal weights, slot i is sample i.

    Args:
        indexes: data sets that are sampled as one.
        column: the name of their column of weights.
        names: of the settings, for errors.

    Raises:
        ValueError: a data set has no such column, or one of text.
        DataError: a weight is missing, negative or infinite, or all are 0.
    """

    def __init__(self, indexes: Sequence[ShardIndex], column: str, *, names: SettingNames = CONFIG_KEYS):
        self._indexes, self._column = tuple(indexes), column
        for index in indexes:
            _check_kind(index, column, names.weight)
        largest = max(self._checked(number, begin, names).max() for number, begin in self._blocks())
        if largest == 0:
            raise DataError(
                f"{names.weight}={column}: expected a weight above 0 in {indexes[0].folder}, got none"
            )
        self._largest = largest
        sums = [self._integers(number, begin).sum() for number, begin in self._blocks()]
        self._ends = np.cumsum([0, *sums], dtype=np.int64)
        self._first_blocks = np.cumsum([0, *(-(-len(index) // _BLOCK) for index in indexes)])
        self._samples = sum(map(len, indexes))

    def locate(self, seed: int, epoch: int, slot: int) -> tuple[int, int]:
        """The number of the data set, and the position in it, at a slot of an epoch."""
        total = int(self._ends[-1])
        shift = (derived_seed(seed, purpose="weights") + epoch * (total * _GOLDEN >> 64)) % total
        point = (slot * total + shift) // self._samples
        block = int(np.searchsorted(self._ends, point, side="right")) - 1
        number = int(np.searchsorted(self._first_blocks, block, side="right")) - 1
        begin = (block - int(self._first_blocks[number])) * _BLOCK
        ends = np.cumsum(self._integers(number, begin))
        return number, begin + int(np.searchsorted(ends, point - self._ends[block], side="right"))

    def _blocks(self) -> Iterator[tuple[int, int]]:
        """The number of a data set and the first position of each block."""
        for number, index in enumerate(self._indexes):
            yield from ((number, begin) for begin in range(0, len(index), _BLOCK))

    def _weights(self, number: int, begin: int) -> np.ndarray:
        index = self._indexes[number]
        return index.column_range(self._column, begin, min(begin + _BLOCK, len(index)))

    def _checked(self, number: int, begin: int, names: SettingNames) -> np.ndarray:
        """The weights of a block, none of which is missing, negative or infinite."""
        weight_R = self._weights(number, begin)
        bad_R = ~((weight_R >= 0) & np.isfinite(weight_R))
        if bad_R.any():
            index, row = self._indexes[number], int(np.argmax(bad_R))
            raise DataError(
                f"{names.weight}={self._column}: expected a number of 0 or more, got {weight_R[row]} for the "
                f"sample {index.sample(begin + row).key} of {index.folder}; fix: correct the column, or "
                f"leave such samples out with {names.where}='{self._column} >= 0'"
            )
        return weight_R

    def _integers(self, number: int, begin: int) -> np.ndarray:
        """The weights of a block as integers; a positive weight stays positive."""
        weight_R = self._weights(number, begin)
        return np.maximum(np.floor(weight_R / self._largest * _LARGEST).astype(np.int64), weight_R > 0)


def _check_kind(index: ShardIndex, name: str, key: str) -> None:
    check_columns(index, [name], key=key)
    if str(index.arrow_column(name).type) == "string":
        raise ValueError(f"{key}: expected a column of numbers of {index.folder}, got the text {name!r}")
