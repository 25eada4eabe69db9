"""Samples of a run, from one data set, evenly or balanced by class, or from several in fixed proportions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from kinemae.data_tools.index import Sample, ShardIndex, open_index
from kinemae.data_tools.randomness import derived_seed
from kinemae.data_tools.storage.cache import Cache
from kinemae.data_tools.stream.order import class_quotas, mixture_position, mixture_quotas, sample_at


@dataclass(frozen=True, kw_only=True)
class LocatedSample:
    """The sample at a position of the run.

    Attributes:
        index: its data set.
        position: in that index.
        key: its key in the run; in a mixture the folder of the data set and the sample's key.
    """

    index: ShardIndex
    position: int
    sample: Sample
    key: str


class Mixture:
    """Several data sets, sampled in proportion to their weights.

    Attributes:
        sets: the data sets by name.
        quotas: positions of each data set in a block, see `order.mixture_position`.
    """

    def __init__(self, sets: Mapping[str, ShardIndex], weights: Mapping[str, float]):
        self.sets = dict(sets)
        self._weights = dict(weights)
        self.quotas = mixture_quotas([weights[name] for name in sets])
        self.sizes = tuple(len(index) for index in sets.values())

    def __len__(self) -> int:
        return sum(self.sizes)

    @property
    def fingerprint(self) -> str:
        """Fingerprints of all data sets, in their order."""
        return "+".join(index.fingerprint for index in self.sets.values())

    def renamed(self, names: Mapping[str, str]) -> "Mixture":
        """The same data sets under new names, sorted by these; `names` maps old to new names."""
        sets = {names.get(name, name): index for name, index in self.sets.items()}
        weights = {names.get(name, name): self._weights[name] for name in self.sets}
        return Mixture({name: sets[name] for name in sorted(sets)}, weights)

    def epochs(self, videos: float) -> dict[str, float]:
        """Epochs of each data set in a run over so many videos."""
        sets = zip(self.sets, self.quotas, self.sizes, strict=True)
        return {name: videos * quota / sum(self.quotas) / size for name, quota, size in sets}


def open_mixture(
    weights: Mapping[str, float], *, cache: Cache | None = None, outage_s: float | None = None
) -> Mixture:
    """Open the data sets of `data.mixture`: folders and their weights.

    Args:
        cache: cache of remote shards.
        outage_s: see `open_index`.

    Raises:
        ValueError: a weight is too small beside the others.
        DataError: a folder is no data set.
    """
    try:  # sorted, so that the order in the config has no effect
        sets = {folder: open_index(folder, cache=cache, outage_s=outage_s) for folder in sorted(weights)}
        return Mixture(sets, weights)
    except ValueError as error:
        raise ValueError(f"data.mixture: {error}") from error


class BalancedClasses:
    """A data set whose classes are sampled more evenly than they occur.

    A class of n samples is sampled in proportion to n ** (1 - balance). Within a class each sample comes once
    per epoch of the class, as in a mixture.

    Args:
        labels: class number of each sample; samples below 0 are never shown.
        balance: from 0, as they occur, to 1, all classes equally often.

    Raises:
        ValueError: no sample has a class.
    """

    def __init__(self, index: ShardIndex, labels: Sequence[int] | np.ndarray, *, balance: float):
        label_R = np.asarray(labels)
        if not (label_R >= 0).any():
            raise ValueError(f"data.balance: expected samples with a class, got none of {len(index)}")
        self.index = index
        self.members = [np.flatnonzero(label_R == label) for label in np.unique(label_R[label_R >= 0])]
        self.sizes = tuple(map(len, self.members))
        self.quotas = class_quotas(self.sizes, balance)

    def __len__(self) -> int:
        return sum(self.sizes)


Source = ShardIndex | Mixture | BalancedClasses


def locate_sample(source: Source, *, seed: int, position: int) -> LocatedSample:
    """The sample at a position of the run; positions count videos."""
    if isinstance(source, Mixture):
        number, epoch, i = mixture_position(seed, position, source.quotas, source.sizes)
        name, index = list(source.sets.items())[number]
        seed = derived_seed(seed, purpose="mixture/set", sample=number)
        chosen = sample_at(seed, epoch, i, len(index))
        sample = index.sample(chosen)
        return LocatedSample(index=index, position=chosen, sample=sample, key=f"{name}/{sample.key}")
    if isinstance(source, BalancedClasses):
        index = source.index
        number, epoch, i = mixture_position(seed, position, source.quotas, source.sizes)
        seed = derived_seed(seed, purpose="balance/class", sample=number)
        chosen = int(source.members[number][sample_at(seed, epoch, i, source.sizes[number])])
    else:
        index = source
        epoch, i = divmod(position, len(index))
        chosen = sample_at(seed, epoch, i, len(index))
    sample = index.sample(chosen)
    return LocatedSample(index=index, position=chosen, sample=sample, key=sample.key)
