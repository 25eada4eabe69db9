"""Values of a column that occur in more than one data set, such as the same file in two splits."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from kinemae.data_tools.index import ShardIndex


def dictionary_encode_column(indexes: Sequence[ShardIndex], name: str) -> tuple[Any, list[np.ndarray]]:
    """Encode a text column of several data sets as numbers.

    Returns:
        The distinct values as an Arrow array, and per data set the code of every sample's value, -1 for null.
    """
    chunks = [chunk for index in indexes for chunk in index.arrow_column(name).chunks]
    together = pa.chunked_array(chunks).dictionary_encode()  # one dictionary for all chunks
    codes = np.concatenate([chunk.indices.fill_null(-1).to_numpy() for chunk in together.chunks])
    ends = np.cumsum([len(index) for index in indexes])[:-1]
    return together.chunk(0).dictionary, np.split(codes, ends)


class Leak(NamedTuple):
    """A value that samples of several data sets have.

    Attributes:
        first: by the number of each data set, the position of its first sample with this value.
        samples: number of samples with this value in all data sets.
    """

    value: str
    first: dict[int, int]
    samples: int


def find_leaks(values: Any, codes: Sequence[np.ndarray]) -> list[Leak]:
    """Find the non-empty values of `dictionary_encode_column` that occur in more than one data set."""
    uniques = [np.unique(of_set, return_index=True, return_counts=True) for of_set in codes]
    set_count = np.zeros(len(values), dtype=np.int32)
    for present, _, _ in uniques:
        set_count[present[present >= 0]] += 1
    found = []
    for code in np.flatnonzero(set_count > 1).tolist():
        if not (value := values[code].as_py()):
            continue
        first, samples = {}, 0
        for number, (present, position, count) in enumerate(uniques):
            at = int(np.searchsorted(present, code))
            if at < len(present) and present[at] == code:
                first[number] = int(position[at])
                samples += int(count[at])
        found.append(Leak(value=value, first=first, samples=samples))
    return found
