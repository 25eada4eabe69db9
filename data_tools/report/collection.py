"""The data sets of a folder as one sequence of samples, so that a report covers all splits."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kinemae.data_tools.index import (
    Sample,
    ShardIndex,
    open_data_sets,
)
from kinemae.data_tools.leaks import Leak, dictionary_encode_column, find_leaks
from kinemae.data_tools.storage.location import Location
from kinemae.data_tools.unread import check_is_read


@dataclass(frozen=True, kw_only=True)
class Collection:
    """Several data sets. A row is the position of a sample in the concatenation of all of them.

    Attributes:
        name: name of the folder.
        splits: names of the data sets, "" for a single one.
    """

    name: str
    splits: tuple[str, ...]
    indexes: tuple[ShardIndex, ...]
    _encoded: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def __len__(self) -> int:
        return sum(map(len, self.indexes))

    @property
    def offsets(self) -> list[int]:
        """The first row of each data set, and the end of the last one."""
        return [0, *np.cumsum([len(index) for index in self.indexes]).tolist()]

    def split_numbers(self, rows: Sequence[int]) -> np.ndarray:
        """The number of the data set of each row."""
        return np.searchsorted(self.offsets, np.asarray(rows), side="right") - 1

    def locate(self, row: int) -> tuple[int, int]:
        """The number of the data set and the position inside it."""
        number = int(self.split_numbers([row])[0])
        return number, row - self.offsets[number]

    def sample(self, row: int) -> Sample:
        """The index entry of a row."""
        number, position = self.locate(row)
        return self.indexes[number].sample(position)

    def columns(self, name: str) -> list[np.ndarray]:
        """A column of numbers, one array per data set."""
        return [index.column(name) for index in self.indexes]

    def encoded(self, name: str) -> tuple[Any, list[np.ndarray]]:
        """A text column as its distinct values and, per data set, the codes of the samples."""
        if name not in self._encoded:
            self._encoded[name] = dictionary_encode_column(self.indexes, name)
        return self._encoded[name]

    def has_values(self, name: str) -> bool:
        """Check whether a text column holds anything but empty text."""
        values, _ = self.encoded(name)
        return any(value.as_py() for value in values[:2])  # distinct, so one of two is not empty

    def leaks(self, name: str) -> list[Leak]:
        """Values of a text column that occur in more than one split."""
        return find_leaks(*self.encoded(name))

    def first_rows(self, leak: Leak) -> list[int]:
        """The first row of each split that has the value of a leak."""
        return [self.offsets[number] + position for number, position in leak.first.items()]


def open_collection(folder: Location) -> Collection:
    """Open one data set, or the folder that holds several.

    Raises:
        DataError: there is none.
    """
    sets = open_data_sets(folder)
    for index in sets.values():
        check_is_read(index, "a report or a card")
    name = folder.name if folder.path is None else folder.path.resolve().name
    return Collection(name=name, splits=tuple(sets), indexes=tuple(sets.values()))
