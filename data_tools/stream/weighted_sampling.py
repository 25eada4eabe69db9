"""Systematic sampling: samples in proportion to a column of weights."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from kinemae.data_tools.command import DataError
from kinemae.data_tools.conditions import check_columns
from kinemae.data_tools.index import ShardIndex
from kinemae.data_tools.randomness import derived_seed

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

    Raises:
        ValueError: a data set has no such column, or one of text.
        DataError: a weight is missing, negative or infinite, or all are 0.
    """

    def __init__(self, indexes: Sequence[ShardIndex], column: str, *, key: str = "data.weight"):
        self.indexes, self.column = tuple(indexes), column
        self._columns = [_checked_column(index, column, key) for index in indexes]
        largest = max(block.max() for number in range(len(indexes)) for block in self._blocks(number))
        if largest == 0:
            raise DataError(f"{key}={column}: expected a weight above 0 in {indexes[0].folder}, got none")
        self._scale = _LARGEST / largest
        sums = [
            _integers(block, self._scale).sum()
            for number in range(len(indexes))
            for block in self._blocks(number)
        ]
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
        weight_R = _integers(self._columns[number].slice(begin, _BLOCK).to_numpy(), self._scale)
        inside = np.searchsorted(np.cumsum(weight_R), point - self._ends[block], side="right")
        return number, begin + int(inside)

    def _blocks(self, number: int) -> Any:
        column = self._columns[number]
        return (column.slice(begin, _BLOCK).to_numpy() for begin in range(0, len(column), _BLOCK))

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_columns"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)  # the columns are mapped again, so that processes share their memory
        self._columns = [index.arrow_column(self.column) for index in self.indexes]


def _checked_column(index: ShardIndex, name: str, key: str) -> Any:
    """The column, if all of its values are weights."""
    check_columns(index, [name], key=key)
    column = index.arrow_column(name)
    if str(column.type) == "string":
        raise ValueError(f"{key}: expected a column of numbers of {index.folder}, got the text {name!r}")
    for begin in range(0, len(column), _BLOCK):
        values = column.slice(begin, _BLOCK).to_numpy()  # null becomes NaN
        bad_R = ~((values >= 0) & np.isfinite(values))
        if bad_R.any():
            position = begin + int(np.argmax(bad_R))
            raise DataError(
                f"{key}={name}: expected a number of 0 or more, got {column[position].as_py()} for the "
                f"sample {index.sample(position).key} of {index.folder}; fix: correct the column, or leave "
                f"such samples out with data.where='{name} >= 0'"
            )
    return column


def _integers(values: np.ndarray, scale: float) -> np.ndarray:
    """Weights as integers; a positive weight stays positive."""
    return np.maximum(np.floor(values * scale).astype(np.int64), values > 0)
