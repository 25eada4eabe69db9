"""Samples of a run: from one or several data sets, evenly, by weight, by class or in fixed proportions."""

import os
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np

from kinemae.data_tools.conditions import select_rows
from kinemae.data_tools.index import Sample, ShardIndex, open_index
from kinemae.data_tools.orders.base import Block, SampleOrder, SourceOrder
from kinemae.data_tools.randomness import derived_seed
from kinemae.data_tools.storage.cache import Cache
from kinemae.data_tools.storage.location import location
from kinemae.data_tools.stream.order import class_quotas, mixture_position, mixture_quotas, sample_at
from kinemae.data_tools.stream.setting_names import CONFIG_KEYS, SettingNames
from kinemae.data_tools.stream.weighted_sampling import SystematicSampling
from kinemae.data_tools.unread import check_is_read


@dataclass(frozen=True, kw_only=True)
class FoundSample:
    """The sample at a position of the run.

    Attributes:
        sample: its row of the index.
        key: its key in the run; with several data sets the folder and the sample's key.
        position: in its index; -1 without an index.
        video: the bytes, if they were read before.
    """

    sample: Sample
    key: str
    position: int = -1
    video: bytes | None = None


@dataclass(frozen=True, kw_only=True)
class LocatedSample(FoundSample):
    """A sample of an index.

    Attributes:
        index: its data set.
        block: its neighbours that are read soon, see `Order.block`.
    """

    index: ShardIndex
    block: Block | None = None


class SeveralSets(ABC):
    """Data sets by name, as one source of samples.

    Attributes:
        weight: the column of weights, see `SystematicSampling`; None samples evenly.
    """

    def __init__(self, sets: Mapping[str, ShardIndex], weight: str | None):
        self.sets, self.weight = dict(sets), weight
        self.sizes = tuple(len(index) for index in sets.values())

    def __len__(self) -> int:
        return sum(self.sizes)

    @property
    def fingerprint(self) -> str:
        """Fingerprints of all data sets, in their order."""
        return "+".join(index.fingerprint for index in self.sets.values())

    @property
    def identity(self) -> str:
        """Identities of all data sets, in their order."""
        return "+".join(index.identity for index in self.sets.values())

    @abstractmethod
    def renamed(self, names: Mapping[str, str]) -> "SeveralSets":
        """The same data sets under new names, sorted by these; `names` maps old to new names."""

    def _renamed_sets(self, names: Mapping[str, str]) -> dict[str, ShardIndex]:
        sets = {names.get(name, name): index for name, index in self.sets.items()}
        return {name: sets[name] for name in sorted(sets)}


class Concatenation(SeveralSets):
    """Data sets that are sampled as one: each sample once per epoch, or in proportion to a column.

    Args:
        weight: the name of a column; None samples evenly. See `SystematicSampling`.
        names: of the settings, for errors.
    """

    def __init__(
        self,
        sets: Mapping[str, ShardIndex],
        *,
        weight: str | None = None,
        names: SettingNames = CONFIG_KEYS,
    ):
        super().__init__(sets, weight)
        self._begins = (0, *accumulate(self.sizes))
        self._sampling = None if weight is None else SystematicSampling([*sets.values()], weight, names=names)

    def renamed(self, names: Mapping[str, str]) -> "Concatenation":
        """See `SeveralSets.renamed`."""
        return Concatenation(self._renamed_sets(names), weight=self.weight)

    def locate(self, seed: int, epoch: int, slot: int) -> tuple[int, int]:
        """The number of the data set, and the position in it, at a slot of an epoch."""
        if self._sampling is not None:
            return self._sampling.locate(seed, epoch, slot)
        number = bisect_right(self._begins, slot) - 1
        return number, slot - self._begins[number]


class Mixture(SeveralSets):
    """Several data sets, sampled in proportion to their weights.

    Args:
        weights: of the data sets.
        weight: the name of a column; samples of each set come in proportion to it. None samples evenly.
        names: of the settings, for errors.

    Attributes:
        sets: the data sets by name.
        quotas: positions of each data set in a block, see `order.mixture_position`.

    Raises:
        ValueError: a weight of a data set that is too small beside the others, or see `SystematicSampling`.
    """

    def __init__(
        self,
        sets: Mapping[str, ShardIndex],
        weights: Mapping[str, float],
        *,
        weight: str | None = None,
        names: SettingNames = CONFIG_KEYS,
    ):
        super().__init__(sets, weight)
        self._weights = dict(weights)
        try:
            self.quotas = mixture_quotas([weights[name] for name in sets])
        except ValueError as error:
            raise ValueError(f"{names.mixture}: {error}") from error
        self.parts = [Concatenation({name: each}, weight=weight, names=names) for name, each in sets.items()]

    def renamed(self, names: Mapping[str, str]) -> "Mixture":
        """See `SeveralSets.renamed`."""
        weights = {names.get(name, name): weight for name, weight in self._weights.items()}
        return Mixture(self._renamed_sets(names), weights, weight=self.weight)

    def epochs(self, videos: float) -> dict[str, float]:
        """Epochs of each data set in a run over so many videos."""
        sets = zip(self.sets, self.quotas, self.sizes, strict=True)
        return {name: videos * quota / sum(self.quotas) / size for name, quota, size in sets}


Sources = str | Path | Sequence[str | Path] | Mapping[str, float]


def open_source(  # noqa: PLR0913 - all but the first by name
    shards: Sources,
    *,
    where: str | None = None,
    weight: str | None = None,
    cache: Cache | None = None,
    check_shards: bool = True,
    outage_s: float | None = None,
    names: SettingNames = CONFIG_KEYS,
) -> ShardIndex | SeveralSets:
    """Open the data of a run.

    Args:
        shards: one folder; a list of folders, read as one data set; or folders with their weights.
        where: a condition over columns, see `conditions.py`: other samples are left out.
        weight: a column: samples come in proportion to it.
        cache: cache of remote shards.
        check_shards, outage_s: see `open_index`; one process of a job checks the shards.
        names: of the settings, for errors.

    Raises:
        ValueError: a wrong condition or column, a folder that is named twice, or a weight of a folder that is
            too small beside the others.
        DataError: a folder is no data set, or has no sample that matches.
    """

    def open_set(folder: str | Path) -> ShardIndex:
        index = open_index(folder, cache=cache, check_shards=check_shards, outage_s=outage_s)
        if cache is not None:
            check_is_read(index, "data.cache_dir")
        return select_rows(index, where, key=names.where)

    if isinstance(shards, str | Path):
        index = open_set(shards)
        return index if weight is None else Concatenation({str(shards): index}, weight=weight, names=names)
    _check_different([*map(str, shards)], names.mixture if isinstance(shards, Mapping) else names.concatenate)
    # Sorted, so that the order in the config has no effect.
    sets = {folder: open_set(folder) for folder in sorted(map(str, shards))}
    if not isinstance(shards, Mapping):
        return Concatenation(sets, weight=weight, names=names)
    return Mixture(sets, shards, weight=weight, names=names)


def _check_different(folders: Sequence[str], key: str) -> None:
    known: dict[str, str] = {}
    for folder in folders:
        place = location(folder)
        same = place.url.rstrip("/") if place.path is None else os.path.realpath(place.path)
        if same in known:
            raise ValueError(
                f"{key}: expected each folder once, got {known[same]} and {folder}, which are the same; "
                "fix: remove one of them"
            )
        known[same] = folder


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


Source = ShardIndex | SeveralSets | BalancedClasses


def data_sets(source: Source) -> Iterable[ShardIndex]:
    """The data sets of a source."""
    if isinstance(source, SeveralSets):
        return source.sets.values()
    return [source.index if isinstance(source, BalancedClasses) else source]


def locate_sample(source: Source, *, seed: int, position: int, order: SourceOrder = None) -> LocatedSample:
    """The sample at a position of the run; positions count videos.

    Args:
        order: of a single data set or of a mixture; None for random order.
    """
    if isinstance(source, Mixture):
        number, epoch, i = mixture_position(seed, position, source.quotas, source.sizes)
        seed = derived_seed(seed, purpose="mixture/set", sample=number)
        if isinstance(order, tuple):
            [(name, index)] = source.parts[number].sets.items()
            return _ordered(index, order[number], seed, epoch, i, prefix=f"{name}/")
        return _located(source.parts[number], seed, epoch, i, is_one=False)
    if isinstance(source, Concatenation):
        return _located(source, seed, *divmod(position, len(source)), is_one=len(source.sets) == 1)
    if isinstance(source, BalancedClasses):
        index = source.index
        number, epoch, i = mixture_position(seed, position, source.quotas, source.sizes)
        seed = derived_seed(seed, purpose="balance/class", sample=number)
        chosen = int(source.members[number][sample_at(seed, epoch, i, source.sizes[number])])
    else:
        assert isinstance(source, ShardIndex)
        index = source
        epoch, i = divmod(position, len(index))
        if isinstance(order, SampleOrder):
            return _ordered(index, order, seed, epoch, i)
        chosen = sample_at(seed, epoch, i, len(index))
    sample = index.sample(chosen)
    return LocatedSample(index=index, position=chosen, sample=sample, key=sample.key)


def _ordered(
    index: ShardIndex, order: SampleOrder, seed: int, epoch: int, i: int, *, prefix: str = ""
) -> LocatedSample:
    """The i-th sample of an epoch in an order."""
    chosen = order.position(seed, epoch, i)
    block, sample = order.block(chosen), index.sample(chosen)
    return LocatedSample(
        index=index, position=chosen, sample=sample, key=f"{prefix}{sample.key}", block=block
    )


def _located(source: Concatenation, seed: int, epoch: int, i: int, *, is_one: bool) -> LocatedSample:
    """The i-th sample of an epoch; `is_one`: the run has no other data set, so keys need no folder."""
    number, chosen = source.locate(seed, epoch, sample_at(seed, epoch, i, len(source)))
    name, index = list(source.sets.items())[number]
    sample = index.sample(chosen)
    key = sample.key if is_one else f"{name}/{sample.key}"
    return LocatedSample(index=index, position=chosen, sample=sample, key=key)
