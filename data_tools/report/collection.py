"""The data sets of a folder as one line of samples, so that the report can speak of all splits at once."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kinemae.data_tools.command import DataError
from kinemae.data_tools.folder_checks import is_tar_pattern, list_data_sets, not_a_data_set
from kinemae.data_tools.index import DATASET_NAME, Sample, ShardIndex, dictionary_encode_column, open_index
from kinemae.data_tools.manifest.videos import SPLITS
from kinemae.data_tools.storage.location import Location


@dataclass(frozen=True, kw_only=True)
class Collection:
    """Data sets side by side; a sample's place counts through all of them.

    Attributes:
        name: the folder's name.
        splits: the data sets' names, "" for a single one.
    """

    name: str
    splits: tuple[str, ...]
    indexes: tuple[ShardIndex, ...]
    _coded: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def __len__(self) -> int:
        return sum(map(len, self.indexes))

    @property
    def offsets(self) -> list[int]:
        """Where each data set begins, and the end of the last."""
        return [0, *np.cumsum([len(index) for index in self.indexes]).tolist()]

    def locate(self, place: int) -> tuple[int, int]:
        """The number of the data set and the position inside it."""
        number = int(np.searchsorted(self.offsets, place, side="right")) - 1
        return number, place - self.offsets[number]

    def sample(self, place: int) -> Sample:
        """The row of the index at a place."""
        number, position = self.locate(place)
        return self.indexes[number].sample(position)

    def columns(self, name: str) -> list[np.ndarray]:
        """A column of numbers, an array a data set."""
        return [index.column(name) for index in self.indexes]

    def coded(self, name: str) -> tuple[Any, list[np.ndarray]]:
        """A column of text as its distinct values and, a data set each, which of them every sample has."""
        if name not in self._coded:
            self._coded[name] = dictionary_encode_column(self.indexes, name)
        return self._coded[name]

    def says(self, name: str) -> bool:
        """Whether a column of text holds anything but empty text."""
        values, _ = self.coded(name)
        return any(value.as_py() for value in values[:2])  # distinct, so one of two is not empty

    def label_names(self) -> list[str]:
        """Classes of all data sets, in the order in which they come."""
        return list(dict.fromkeys(name for index in self.indexes for name in index.classes))

    def split_of(self, places: Sequence[int] | np.ndarray) -> np.ndarray:
        """The number of the data set of each place."""
        return np.searchsorted(self.offsets, np.asarray(places), side="right") - 1


def open_collection(folder: Location) -> Collection:
    """Open one data set, or the folder that holds several.

    Raises:
        DataError: there is none.
    """
    name = folder.name if folder.path is None else folder.path.resolve().name
    if (folder / DATASET_NAME).exists():
        return Collection(name=name, splits=("",), indexes=(open_index(folder),))
    names = list_data_sets(folder, DATASET_NAME)
    names.sort(key=lambda name: SPLITS.index(name) if name in SPLITS else len(SPLITS))
    if not names and is_tar_pattern(folder):
        raise not_a_data_set(folder, (DATASET_NAME,))
    if not names:
        raise DataError(
            f"{folder} holds no data set: give a folder made by `kinemae data shard SOURCE OUT`, "
            "either OUT or one of the folders in it"
        )
    indexes = tuple(open_index(folder / name) for name in names)
    return Collection(name=name, splits=tuple(names), indexes=indexes)


def runs_of_equals(*keys: np.ndarray) -> list[np.ndarray]:
    """Positions of rows that are equal in all keys, a group of two or more each."""
    order = np.lexsort(keys)
    changes = np.zeros(max(len(order) - 1, 0), dtype=bool)
    for key in keys:
        changes |= np.diff(key[order]) != 0
    borders = np.concatenate([[0], np.flatnonzero(changes) + 1, [len(order)]])
    long = np.flatnonzero(np.diff(borders) > 1)
    return [np.sort(order[borders[run] : borders[run + 1]]) for run in long]
