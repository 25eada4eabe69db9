"""Windows: samples are written to shards some shards at a time, so that memory and scratch space are bounded.

The videos of a split have a seeded order. Their samples are collected until they fill `SHARDS` shards; such a
window is cut into shards, and samples that do not fill one go to the next window. If a video has several
samples, as with `segment_s`, the samples are shuffled inside the window.

WORK/windows.jsonl has a line per window. A line is written when the shards of the window are in OUT; then its
samples leave the spool folder. If WORK is not in OUT, OUT/work holds a copy of each line, so that another
machine can continue.
"""

import json
import os
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from kinemae.data_tools.command import DataError, log
from kinemae.data_tools.index import Shard
from kinemae.data_tools.layouts.base import Job
from kinemae.data_tools.manifest.videos import SourceVideo
from kinemae.data_tools.sharding.output import Output
from kinemae.data_tools.sharding.rows import Row, SplitSample, index_row, shard_sample
from kinemae.data_tools.sharding.splits import shuffled
from kinemae.data_tools.sharding.tar_writer import into_shards
from kinemae.data_tools.sharding.transcode import (
    StoredSample,
    TranscodeResult,
    forget,
    is_stored,
    parse_sample,
    source_states,
    stored_file,
)

SHARDS = 4  # per window
_WINDOWS_NAME = "windows.jsonl"
_COPY_ENDING = ".window.json"
Store = Callable[[Container[str]], Iterable[tuple[Job, TranscodeResult]]]


@dataclass(frozen=True, kw_only=True)
class Window:
    """A finished window.

    Attributes:
        videos: number of videos of the split's order that are done.
        rows: of the index.
        contents: digest of the source's bytes by the name of each stored video.
        rejected, notes: lines of rejected.jsonl and notes.jsonl.
        rest: samples that are in no shard yet: the name of the video, the sample, digest and stamp of the
            source.
    """

    split: str
    videos: int
    shards: tuple[Shard, ...] = ()
    rows: tuple[Row, ...] = ()
    contents: Mapping[str, str] = field(default_factory=dict)
    rejected: tuple[Mapping[str, Any], ...] = ()
    notes: tuple[Mapping[str, Any], ...] = ()
    rest: tuple[tuple[str, StoredSample, str, str], ...] = ()


@dataclass(frozen=True, kw_only=True)
class SplitState:
    """What is done of a split: numbers of videos, windows, shards and samples, and the last window's rest."""

    videos: int = 0
    windows: int = 0
    shards: int = 0
    samples: int = 0
    rest: tuple[tuple[str, StoredSample, str, str], ...] = ()


class WindowLog:
    """The finished windows on disk. Only their outcome is kept in memory.

    Args:
        find_video: returns a video by its name.

    Attributes:
        rejected, notes: lines of rejected.jsonl and notes.jsonl by the name of the video.
        splits: what is done, by split.
    """

    def __init__(self, output: Output, find_video: Callable[[str], SourceVideo]):
        self.file = output.work / _WINDOWS_NAME
        self.find_video = find_video
        self.rejected: dict[str, Mapping[str, Any]] = {}
        self.notes: dict[str, Mapping[str, Any]] = {}
        self.splits: dict[str, SplitState] = {}
        self._copies = output.copies
        if self._copies is not None and not self.file.exists():
            copies = [(self._copies / name).read() for name in self._copies.list(_COPY_ENDING)]
            self.file.write_bytes(b"".join(copies))
        self._restore(output)

    def add(self, window: Window) -> None:
        """Append a window, durably."""
        line = json.dumps(asdict(window), ensure_ascii=False) + "\n"
        if self._copies is not None:
            (self._copies / _copy_name(sum(state.windows for state in self.splits.values()))).write(
                line.encode()
            )
        with self.file.open("a", encoding="utf-8") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        self._count(window)

    def windows(self, split: str | None = None) -> Iterator[Window]:
        """Read the windows one by one, of a split or of all; an incomplete last line is ignored."""
        for window, _ in self._lines():
            if split in (None, window.split):
                yield window

    def _lines(self) -> Iterator[tuple[Window, int]]:
        """The windows, each with the position of its end in the file."""
        end = 0
        with self.file.open("rb") if self.file.exists() else open(os.devnull, "rb") as file:
            for line in file:
                end += len(line)
                if line.endswith(b"\n"):
                    yield _parse(json.loads(line)), end

    def _restore(self, output: Output) -> None:
        """Count the windows on disk. From the first one whose shards are missing on, they are dropped.

        An incomplete last line is dropped, too.
        """
        sizes = cache(output.shard_sizes)
        usable = total = usable_end = 0
        for window, end in self._lines():
            found = sizes(window.split)
            if usable == total and all(found.get(one.name) == one.bytes for one in window.shards):
                self._count(window)
                usable, usable_end = usable + 1, end
            total += 1
        if usable < total:
            log.warning(
                "%s: %d windows of finished shards are incomplete and are written again",
                *(output.out, total - usable),
            )
            for number in range(usable, total):
                if self._copies is not None:
                    (self._copies / _copy_name(number)).remove()
        if self.file.exists():
            os.truncate(self.file, usable_end)

    def _count(self, window: Window) -> None:
        for name in window.contents:
            self.rejected.pop(name, None)
        self.rejected |= {entry["path"]: entry for entry in window.rejected}
        self.notes |= {entry["path"]: entry for entry in window.notes}
        before = self.splits.get(window.split, SplitState())
        self.splits[window.split] = SplitState(
            videos=window.videos,
            windows=before.windows + 1,
            shards=before.shards + len(window.shards),
            samples=before.samples + len(window.rows),
            rest=window.rest,
        )


def restore_rest(split: str, output: Output, windows: WindowLog, store: Store) -> list[SplitSample]:
    """The samples of an earlier run that are in no shard yet; those whose bytes are lost are stored again.

    Args:
        store: stores the videos with these names.

    Raises:
        DataError: a video no longer gives its sample.
    """
    state = windows.splits.get(split, SplitState())
    rest = {
        stored.key: SplitSample(video=windows.find_video(name), stored=stored, content=content, stamp=stamp)
        for name, stored, content, stamp in state.rest
    }
    lost = {key for key, sample in rest.items() if not _is_left(sample, output.spool)}
    for job, result in store({rest[key].video.name for key in lost}) if lost else ():
        for stored in result.samples:
            if stored.key in lost:
                rest[stored.key] = SplitSample(
                    video=job.video, stored=stored, content=result.content, stamp=result.stamp
                )
                lost.remove(stored.key)
            elif stored.is_spooled and stored.key not in rest:
                stored_file(stored, output.spool).unlink()
        forget(output.work, [result.stamp])
    if lost:
        video = rest[min(lost)].video
        raise DataError(
            f"{video.name}: expected the video that was read before, got another one, or none; fix: remove "
            f"{output.out} and run the command again"
        )
    return list(rest.values())


def _is_left(sample: SplitSample, spool: Path) -> bool:
    """Check whether the bytes of a sample are those that were checked."""
    if sample.stored.is_spooled:
        return is_stored(sample.stored, spool)
    [state] = source_states([sample.video])
    return state.stamp == sample.stamp


class SplitWriter:
    """Writes the shards of a split.

    Args:
        rest: see `restore_rest`.
        classes: in the order of their numbers.
        record: the config, as dataset.json holds it.

    Attributes:
        videos: number of videos of the split's order that are done.
    """

    def __init__(
        self,
        split: str,
        output: Output,
        windows: WindowLog,
        *,
        rest: Sequence[SplitSample],
        classes: Sequence[str],
        record: Mapping[str, Any],
    ):
        state = windows.splits.get(split, SplitState())
        self.videos, self._shards, self._number = state.videos, state.shards, state.windows
        self._split, self._output, self._windows = split, output, windows
        self._numbers = {name: number for number, name in enumerate(classes)}
        self._seed: int = record["seed"]
        self._samples_per_shard: int = record["samples_per_shard"]
        self._bytes_per_shard: int = record["megabytes_per_shard"] * 1_000_000
        self._rest = list(rest)
        self._clear()

    def add(self, video: SourceVideo, result: TranscodeResult, *, is_retry: bool = False) -> None:
        """Add the result of a video, the next one of the order unless it is a retry."""
        self.videos += not is_retry
        self._stamps.append(result.stamp)
        if result.reason:
            flag = {} if result.is_final else {"is_final": False}
            self._rejected.append({"path": video.name, "reason": result.reason, **flag})
            return
        if result.note:
            self._notes.append({"path": video.name, "note": result.note})
        self._contents[video.name] = result.content
        for stored in result.samples:
            sample = SplitSample(video=video, stored=stored, content=result.content, stamp=result.stamp)
            self._samples.append(sample)
            self._bytes += stored.length
        is_full = len(self._samples) >= SHARDS * self._samples_per_shard
        if is_full or self._bytes >= SHARDS * self._bytes_per_shard:
            self._finish(is_last=False)

    def close(self) -> None:
        """Write all samples that are left."""
        if self._stamps or self._rest:
            self._finish(is_last=True)

    def _clear(self) -> None:
        self._samples: list[SplitSample] = []
        self._bytes = 0
        self._stamps: list[str] = []
        self._contents: dict[str, str] = {}
        self._rejected: list[Mapping[str, Any]] = []
        self._notes: list[Mapping[str, Any]] = []

    def _finish(self, *, is_last: bool) -> None:
        new = self._samples
        if len(new) > len(self._contents):  # else the order of the videos is a shuffled one already
            new = shuffled(new, seed=self._seed, purpose=f"shard/window/{self._split}/{self._number}")
        samples = {sample.stored.key: sample for sample in (*self._rest, *new)}
        groups = list(
            into_shards(
                [shard_sample(sample, self._output.spool, self._numbers) for sample in samples.values()],
                samples_per_shard=self._samples_per_shard,
                bytes_per_shard=self._bytes_per_shard,
            )
        )
        last = [] if is_last or not groups else groups.pop()
        self._rest = [samples[each.key] for each in last]
        written = [
            self._output.write_shard(self._split, self._shards + number, group)
            for number, group in enumerate(groups)
        ]
        places = [place for _, places in written for place in places]
        window = Window(
            split=self._split,
            videos=self.videos,
            shards=tuple(shard for shard, _ in written),
            rows=tuple(index_row(samples[place.key], place, self._numbers) for place in places),
            contents=self._contents,
            rejected=tuple(self._rejected),
            notes=tuple(self._notes),
            rest=tuple((each.video.name, each.stored, each.content, each.stamp) for each in self._rest),
        )
        self._windows.add(window)
        forget(self._output.work, self._stamps)
        for place in places:
            if samples[place.key].stored.is_spooled:
                stored_file(samples[place.key].stored, self._output.spool).unlink()
        self._shards += len(written)
        self._number += 1
        self._clear()


def _copy_name(number: int) -> str:
    return f"{number:06d}{_COPY_ENDING}"


def _parse(fields: dict[str, Any]) -> Window:
    rest = [(name, parse_sample(stored), *marks) for name, stored, *marks in fields.pop("rest")]
    shards = [Shard(**shard) for shard in fields.pop("shards")]
    lists: dict[str, Any] = {name: tuple(fields.pop(name)) for name in ("rows", "rejected", "notes")}
    return Window(**fields, **lists, shards=tuple(shards), rest=tuple(rest))
