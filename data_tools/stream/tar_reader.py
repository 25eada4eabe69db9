"""Read the samples of tars in sequence with webdataset: split by process and worker, group, shuffle.

The pipeline is webdataset's. Opening and unpacking are ours: webdataset starts programs for some URLs, ends
silently at a truncated tar or a damaged header, and its decoders unpickle members.
"""

import random
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain, groupby
from typing import Any

import webdataset

from kinemae.data_tools import heartbeat
from kinemae.data_tools.command import DataError, log
from kinemae.data_tools.indexing.tar_members import (
    TarMember,
    is_pickle,
    is_video_extension,
    split_key,
    warn_of_pickles,
)
from kinemae.data_tools.manifest.videos import printable
from kinemae.data_tools.randomness import derived_seed
from kinemae.data_tools.storage.location import Location
from kinemae.data_tools.storage.sequential_file import SequentialFile
from kinemae.data_tools.stream.tar_list import TarList, TarSlice

# A sample as in webdataset: "__key__", "__url__", and the bytes of each member by its extension.
RawSample = dict[str, Any]
# ("map", function that returns a changed sample), or ("select", function that returns whether to keep it).
Hook = tuple[str, Callable[[RawSample], Any]]

_BUFFER = 1 << 18
_CHUNK = 1 << 20
_MANY_TARS = 100
_FIX = "fix: download or create it again"


class TarReader(Iterator[RawSample]):
    """Iterate over the samples with a video of one reader's tars, without an end.

    Each sample comes once before a sample of the next epoch.

    Args:
        buffer: samples of the shuffle buffer.
        hooks: called in order for each sample, before the shuffle buffer.
        keeps: whether to read the members with an extension.
    """

    def __init__(
        self,
        tars: TarList,
        own: TarSlice,
        *,
        seed: int,
        buffer: int,
        hooks: tuple[Hook, ...] = (),
        keeps: Callable[[str], bool] = lambda extension: True,
    ):
        self._tars, self._own, self._seed = tars, own, seed
        self._buffer, self._hooks, self._keeps = buffer, hooks, keeps
        self._unused: Counter[int] = Counter()  # samples that were read and not returned, by tar
        self._read_tars: set[int] = set()
        self._has_sample = False  # in the current epoch
        self._without_sample: set[str] = set()  # tars since the last epoch with a sample
        # Warnings that were given; other readers have the same ones.
        self._warnings = set() if own.rank == own.worker == 0 else {"pickle", "video"}
        self._samples = self._all_samples()

    def __next__(self) -> RawSample:
        return next(self._samples)

    def take_done(self) -> tuple[int, ...]:
        """The tars whose last sample was returned since the last call, and those without a sample."""
        done = sorted(number for number in self._read_tars if not self._unused[number])
        self._read_tars.difference_update(done)
        for number in done:
            del self._unused[number]
        return tuple(done)

    def _all_samples(self) -> Iterator[RawSample]:
        for _, numbers in groupby(self._own.numbers(), key=lambda number: number // len(self._tars)):
            self._has_sample = False
            yield from self._epoch(numbers)
            if self._has_sample:
                self._without_sample.clear()
            elif len(self._without_sample) >= min(len(self._tars), _MANY_TARS):
                raise DataError(
                    f"{self._tars.text}: expected samples with a video, got none in "
                    f"{len(self._without_sample)} tars; fix: name tars whose members have a video extension "
                    "such as .mp4, and check the functions given to map and select"
                )

    def _epoch(self, numbers: Iterator[int]) -> Iterator[RawSample]:
        """The webdataset pipeline of the tars of an epoch."""
        first = next(numbers)
        chance = random.Random(derived_seed(self._seed, purpose="tars/buffer", step=first))
        shuffle = webdataset.filters.shuffle(self._buffer, initial=max(self._buffer // 10, 1), rng=chance)
        return iter(
            webdataset.DataPipeline(
                lambda: chain([first], numbers),
                self._read_samples,
                shuffle if self._buffer > 1 else None,
                self._used,
            )
        )

    def _read_samples(self, numbers: Iterator[int]) -> Iterator[RawSample]:
        for number in numbers:
            name, place = self._tars.at(self._seed, number)
            samples = self._kept_samples(number, name, place)
            sample = next(samples, None)
            if sample is None:
                self._read_tars.add(number)
                self._add_without_sample(name)
            while sample is not None:
                self._has_sample = True
                self._unused[number] += 1
                following = next(samples, None)
                if following is None:  # so that the tar is done with its last sample
                    self._read_tars.add(number)
                yield sample
                sample = following

    def _kept_samples(self, number: int, name: str, place: Location) -> Iterator[RawSample]:
        """The samples of a tar that the hooks keep and that have a video."""
        kinds = {"map": webdataset.filters.map, "select": webdataset.filters.select}
        own = {"__tar__": name, "__number__": number}
        return iter(
            webdataset.DataPipeline(
                lambda: (sample | own for sample in self._read_tar(place)),
                *(kinds[kind](partial(_call, kind, hook)) for kind, hook in self._hooks),
                webdataset.filters.select(self._has_video),
            )
        )

    def _add_without_sample(self, name: str) -> None:
        self._without_sample.add(name)
        if len(self._without_sample) == _MANY_TARS and not self._has_sample:
            what = "%s: no sample with a video in %d tars so far, the last one %s"
            log.warning(what, self._tars.text, _MANY_TARS, name)

    def _used(self, samples: Iterator[RawSample]) -> Iterator[RawSample]:
        for sample in samples:
            self._unused[sample["__number__"]] -= 1
            yield sample

    def _has_video(self, sample: RawSample) -> bool:
        if video_members(sample):
            return True
        if "video" not in self._warnings:
            what = "%s: a sample without a video is skipped, first %s"
            log.warning(what, sample["__tar__"], sample["__key__"])
        self._warnings.add("video")
        return False

    def _read_tar(self, place: Location) -> Iterator[RawSample]:
        with SequentialFile(place) as file:
            members = self._members(file, place)
            try:
                yield from webdataset.tariterators.group_by_keys(members)
            except ValueError as error:  # webdataset adds two arguments
                message = f"expected unique members, got a {error.args[0]}; fix: remove or rename one"
                raise DataError(f"{place}: {message}") from error

    def _members(self, file: SequentialFile, place: Location) -> Iterator[dict[str, Any]]:
        """The members of a tar, as webdataset's `tar_file_expander` yields them."""
        last = "at its beginning"
        try:
            with tarfile.open(fileobj=file, mode="r|", bufsize=_BUFFER, tarinfo=_CheckedHeader) as tar:
                for info in tar:
                    heartbeat.progress()
                    name = printable(info.name)
                    last = f"after {name}"
                    if self._is_read(info, name, place):
                        content = tar.extractfile(info)
                        assert content is not None
                        yield {"fname": name, "data": content.read(), "__url__": str(place)}
                    tar.members.clear()  # type: ignore[attr-defined] # not needed, and a tar may have millions
                _check_end(tar, place)
        except tarfile.TarError as error:
            raise DataError(
                f"{place}: expected a complete, plain tar, got invalid data {last} ({error}); {_FIX}"
            ) from error

    def _is_read(self, info: tarfile.TarInfo, name: str, place: Location) -> bool:
        if info.issparse():
            raise DataError(
                f"{place}: expected plain members, got the sparse file {name}; fix: create the tar again "
                "without --sparse"
            )
        if is_pickle(name):
            if "pickle" not in self._warnings:
                warn_of_pickles([TarMember(name=name, offset=0, length=0)], str(place))
            self._warnings.add("pickle")
            return False
        key, extension = split_key(name)
        return info.isreg() and bool(key) and self._keeps(extension)


def video_members(sample: RawSample) -> list[str]:
    """The extensions of the videos of a sample."""
    return [name for name in sample if not name.startswith("__") and is_video_extension(name)]


def _call(kind: str, hook: Callable[[RawSample], Any], sample: RawSample) -> Any:
    """Call a hook; the names that begin with __ stay, and an error of the hook names the sample."""
    own = {name: value for name, value in sample.items() if name.startswith("__")}
    name = getattr(hook, "__name__", hook)
    try:
        result = hook(sample)
    except Exception as error:
        error.add_note(f"{kind}: {name} failed for sample {own['__key__']} of {own['__url__']}")
        raise
    if kind == "select" or result is None:
        return result
    wrong = [type(result).__name__]
    if isinstance(result, dict):
        wrong = [f"the key {key!r}" for key in result if not isinstance(key, str)]
    if wrong:
        raise DataError(
            f"map: expected a dictionary with texts as keys, or None, from {name}, got {wrong[0]} for "
            f"{own['__tar__']}/{own['__key__']}; fix: return the changed sample"
        )
    return {**result, **own}


class _CheckedHeader(tarfile.TarInfo):
    """A header; `tarfile` ends silently at one that is missing or damaged, unless it is the first."""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> "_CheckedHeader":
        try:
            return super().fromtarfile(tar)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"{error}, at byte {tar.offset}") from error


def _check_end(tar: tarfile.TarFile, place: Location) -> None:
    """Reject tars joined with `cat`: only zeros may follow the end."""
    while rest := tar.fileobj.read(_CHUNK):
        if rest.strip(b"\0"):
            raise DataError(
                f"{place}: expected the end of the tar at byte {tar.offset}, got more data; fix: do not "
                "concatenate tars with cat"
            )
