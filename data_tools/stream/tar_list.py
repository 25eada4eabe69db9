"""Tars of a WebDataset without an index: their list, their order, and the tars that a run has read.

The tars of a run are numbered 0, 1, 2, ...: `tars` numbers make an epoch, which has each tar once in a new
order. The sequence does not end, so no process runs out of tars before another one. As in webdataset, the
numbers are dealt to the processes in turn, then to the loader workers of each process.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count, islice
from pathlib import Path
from typing import Any

from kinemae.data_tools.command import DataError
from kinemae.data_tools.folder_checks import index_command, is_tar_pattern
from kinemae.data_tools.indexing.shard_list import find_shards
from kinemae.data_tools.randomness import derived_seed
from kinemae.data_tools.storage.location import Location, RetryPolicy, location
from kinemae.data_tools.stream.order import sample_at


def is_tars(shards: Any) -> bool:
    """Check whether `data.shards` names tars, and not folders of data sets."""
    if isinstance(shards, str | Path | Location):
        return is_tar_pattern(location(shards))
    return isinstance(shards, Sequence) and len(shards) > 0 and all(map(is_tars, shards))


@dataclass(frozen=True)
class TarList:
    """The tars of one or several patterns, in order.

    Attributes:
        text: the patterns, for messages.
        names: unique names, relative to the folders in which the patterns begin.
    """

    text: str
    places: tuple[Location, ...]
    names: tuple[str, ...]

    @cached_property
    def fingerprint(self) -> str:
        """A digest of the names: reading the tars would take too long at a start."""
        return hashlib.sha256("\n".join(self.names).encode()).hexdigest()[:16]

    @property
    def identity(self) -> str:
        """See `ShardIndex.identity`."""
        return f"tars-{self.fingerprint}"

    def __len__(self) -> int:
        return len(self.places)

    def at(self, seed: int, number: int) -> tuple[str, Location]:
        """Name and location of a tar of the run."""
        epoch, i = divmod(number, len(self))
        place = sample_at(derived_seed(seed, purpose="tars"), epoch, i, len(self))
        return self.names[place], self.places[place]

    def check_ends(self) -> None:
        """Check that the first and the last tar exist, since a pattern is not looked up."""
        for place in {self.places[0]: None, self.places[-1]: None}:
            if not place.exists():
                raise DataError(f"{self.text}: expected {place}, got no such file; fix: correct it")


def open_tars(
    patterns: str | Path | Location | Sequence[str | Path],
    *,
    outage_s: float | None = None,
    needs_index: Mapping[str, Any] | None = None,
) -> TarList:
    """List tars: one tar, a pattern such as s3://bucket/x-{0000..0999}.tar or x-*.tar, or several of them.

    Braces need no request; a `*` lists a folder.

    Args:
        outage_s: how long to wait for a storage that is down.
        needs_index: values of settings that need an index; None if they are not set.

    Raises:
        DataError: there is no tar, or a tar is compressed.
        ValueError: an invalid pattern or URL, or a setting that needs an index.
    """
    given = [patterns] if isinstance(patterns, str | Path | Location) else list(patterns)
    policy = RetryPolicy() if outage_s is None else RetryPolicy(outage_s=outage_s)
    roots = [location(str(each) if isinstance(each, Path) else each, retry_policy=policy) for each in given]
    for key, value in (needs_index or {}).items():
        if value is not None:
            raise ValueError(
                f"{key}: expected it to be unset for tars without an index, got {value}; fix: remove it, or "
                f"make an index with `{index_command(roots[0], 'INDEX')}` and read INDEX"
            )
    found = [shard for root in roots for shard in find_shards(root, by_split=False)]
    places = tuple(location(shard.place.url, retry_policy=policy) for shard in found)
    names = [shard.name for shard in found]
    if len(set(names)) < len(names):  # of several folders
        names = [str(place) for place in places]
    if len(set(names)) < len(names):
        [(name, _)] = Counter(names).most_common(1)
        raise DataError(f"shards: expected different tars, got {name} twice; fix: name it once")
    return TarList(", ".join(map(str, roots)), places, tuple(names))


@dataclass(frozen=True)
class TarsDone:
    """The tars whose samples have all been used: each number below `before`, and those in `later`."""

    before: int = 0
    later: frozenset[int] = field(default_factory=frozenset)

    def plus(self, numbers: Iterable[int]) -> "TarsDone":
        """Add tars."""
        before, later = self.before, {*self.later, *numbers}
        while before in later:
            later.remove(before)
            before += 1
        return TarsDone(before, frozenset(number for number in later if number > before))

    def left(self) -> Iterator[int]:
        """The numbers of all other tars, without an end."""
        return (number for number in count(self.before) if number not in self.later)

    def as_json(self, seed: int, tars: int) -> dict[str, Any]:
        """The state for a checkpoint."""
        epoch = self.before // tars
        return {
            "seed": seed,
            "tars": tars,
            "epoch": epoch,
            "before": self.before,
            "later": sorted(self.later),
        }

    @classmethod
    def of_json(cls, stored: Mapping[str, Any]) -> "TarsDone":
        """The stored state; nothing for an empty one."""
        return cls(stored.get("before", 0), frozenset(stored.get("later", ())))


@dataclass(frozen=True, kw_only=True)
class TarSlice:
    """The tars of one reader of a run: a loader worker of a process.

    Attributes:
        done: tars that were done when the run started; the same for all readers.
        skipped: tars that this reader has done since.
    """

    rank: int = 0
    world: int = 1
    worker: int = 0
    workers: int = 1
    done: TarsDone = field(default_factory=TarsDone)
    skipped: frozenset[int] = field(default_factory=frozenset)

    def numbers(self) -> Iterator[int]:
        """The numbers of this reader's tars, without an end."""
        of_process = islice(self.done.left(), self.rank, None, self.world)
        own = islice(of_process, self.worker, None, self.workers)
        return (number for number in own if number not in self.skipped)
