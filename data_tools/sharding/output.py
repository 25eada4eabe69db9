"""OUT, local or remote, and the local work folder in which its files are written.

    WORK/transcoded.jsonl  the result of each video
    WORK/spool/            samples that are in no shard yet
    WORK/shards.jsonl      the finished shards
    WORK/lock              held while a process writes to OUT

WORK is OUT/work unless the config sets `work_dir`; for a remote OUT it is in the user's cache. Shards of a
local OUT are written in place; those of a remote OUT are written in WORK and uploaded. A shard is finished
when shards.jsonl lists it; only then are its samples removed from the spool.
"""

import dataclasses
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kinemae.data_tools.command import DataError, log
from kinemae.data_tools.files import atomic_write_text, flock, read_jsonl
from kinemae.data_tools.index import (
    COLUMNS,
    DATASET_NAME,
    DESCRIPTION_FORMAT,
    DESCRIPTION_KEY,
    INDEX_NAME,
    NO_LABEL,
    Sample,
    Shard,
    write_index,
)
from kinemae.data_tools.manifest.videos import SPLITS, SourceVideo
from kinemae.data_tools.sharding.splits import shuffled
from kinemae.data_tools.sharding.tar_writer import Place, ShardSample, into_shards, shard_name, write_shard
from kinemae.data_tools.sharding.transcode import SPOOL_NAME, StoredSample, stored_file
from kinemae.data_tools.storage.location import Location

WORK_NAME = "work"
_FINISHED_NAME = "shards.jsonl"


@dataclass(frozen=True, kw_only=True)
class SplitSample:
    """A sample of a split, before it is in a shard.

    Attributes:
        content: digest of the source's bytes.
    """

    video: SourceVideo
    stored: StoredSample
    content: str


@dataclass(frozen=True, kw_only=True)
class FinishedShard:
    """A shard that is in OUT."""

    split: str
    shard: Shard
    places: tuple[Place, ...]


class Output:
    """The folder or URL that gets the shards, and the list of shards that are finished."""

    def __init__(self, out: Location, work_dir: str | None):
        self.out = out
        self.work = _work_folder(out, work_dir)
        self._finished: dict[tuple[str, str], FinishedShard] = {}

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Lock the work folder for this process, and read the state of an earlier run.

        Raises:
            DataError: another process writes to OUT.
        """
        self.work.mkdir(parents=True, exist_ok=True)
        with (self.work / "lock").open("w") as lock:
            try:
                has_locks = flock(lock.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise DataError(f"OUT {self.out}: another process writes to it; fix: wait for it") from error
            if not has_locks:
                log.warning(
                    "%s is on a file system without locks (flock): run one command at a time for %s",
                    *(self.work, self.out),
                )
            self._finished = self._still_there(_read_finished(self.work / _FINISHED_NAME))
            self._save_finished()
            yield

    def is_sharded(self, key: str) -> bool:
        """Check whether a finished shard holds the sample of a key."""
        return key in self._keys

    def write_split(
        self, split: str, samples: Sequence[SplitSample], classes: Sequence[str], record: Mapping[str, Any]
    ) -> None:
        """Write the shards of a split in a seeded order, except the finished ones, and its index.

        Args:
            record: the config, as dataset.json holds it.
        """
        ordered = shuffled(samples, seed=record["seed"], purpose=f"shard/order/{split}")
        numbers = {name: number for number, name in enumerate(classes)}
        groups = into_shards(
            [_shard_sample(sample, self.work / SPOOL_NAME, numbers) for sample in ordered],
            samples_per_shard=record["samples_per_shard"],
            bytes_per_shard=record["megabytes_per_shard"] * 1_000_000,
        )
        finished = [self.write_shard(split, number, group) for number, group in enumerate(groups)]
        places = [place for entry in finished for place in entry.places]
        rows = [_row(sample, place, numbers) for sample, place in zip(ordered, places, strict=True)]
        made_by = {"command": "data_tools shard", "split": split, "config": record}
        shards = [entry.shard for entry in finished]
        names = sorted({name for sample in ordered for name in sample.video.extra})
        extra = {name: [sample.video.extra.get(name) for sample in ordered] for name in names}
        write_index(self._split_folder(split), rows, shards, classes, made_by, extra)
        for name in (INDEX_NAME, DATASET_NAME):  # dataset.json marks the data set as complete
            self._upload(split, name)
        log.info("%s: %d videos in %d shards", self.out / split, len(rows), len(shards))

    def write_shard(self, split: str, number: int, group: Sequence[ShardSample]) -> FinishedShard:
        """Write a shard, or return the finished one.

        Raises:
            DataError: the disk is full, a video has changed since it was checked, or the upload failed.
        """
        finished = self._finished.get((split, shard_name(number)))
        if finished is not None and _holds(finished, group):
            return finished
        if finished is not None:
            del self._finished[(split, shard_name(number))]
            self._save_finished()
        shard, places = write_shard(self._split_folder(split), number, group)
        self._upload(split, shard.name)
        finished = FinishedShard(split=split, shard=shard, places=tuple(places))
        with (self.work / _FINISHED_NAME).open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(finished)) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._finished[(split, shard.name)] = finished
        for sample in group:
            if sample.file.parent == self.work / SPOOL_NAME:
                sample.file.unlink()
        return finished

    def write_text(self, name: str, text: str) -> None:
        """Write a small file of OUT, such as train/rejected.jsonl."""
        place = self.out
        for part in name.split("/"):
            place = place / part
        place.write(text.encode())

    def remove_work(self) -> None:
        """Remove the work folder."""
        shutil.rmtree(self.work, ignore_errors=True)

    def _split_folder(self, split: str) -> Path:
        """The local folder in which the files of a split are written."""
        folder = (self.out.path or self.work) / split
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _upload(self, split: str, name: str) -> None:
        if self.out.path is None:
            file = self.work / split / name
            (self.out / split / name).upload(file)
            file.unlink()

    def _still_there(self, finished: Sequence[FinishedShard]) -> dict[tuple[str, str], FinishedShard]:
        sizes = {split: (self.out / split).list_sizes() for split in {entry.split for entry in finished}}
        there = {
            (entry.split, entry.shard.name): entry
            for entry in finished
            if sizes[entry.split].get(entry.shard.name) == entry.shard.bytes
        }
        if len(there) < len(finished):
            log.warning(
                "%s: %d finished shards are missing and are written again",
                *(self.out, len(finished) - len(there)),
            )
        return there

    def _save_finished(self) -> None:
        """Write the list of finished shards; this also drops an incomplete last line."""
        text = "".join(json.dumps(asdict(entry)) + "\n" for entry in self._finished.values())
        atomic_write_text(self.work / _FINISHED_NAME, text)
        self._keys = {place.key for entry in self._finished.values() for place in entry.places}


def _work_folder(out: Location, work_dir: str | None) -> Path:
    name = hashlib.sha256(str(out if out.path is None else out.path.resolve()).encode()).hexdigest()[:16]
    if work_dir is not None:
        return Path(work_dir) / f"shard-{name}"
    if out.path is not None:
        return out.path / WORK_NAME
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "kinemae" / f"shard-{name}"


def _holds(finished: FinishedShard, group: Sequence[ShardSample]) -> bool:
    return [(place.key, place.length, place.crc32) for place in finished.places] == [
        (sample.key, sample.length, sample.crc32) for sample in group
    ]


def _read_finished(file: Path) -> list[FinishedShard]:
    found = []
    for entry in read_jsonl(file):
        assert entry["split"] in SPLITS
        places = tuple(Place(**place) for place in entry["places"])
        found.append(FinishedShard(split=entry["split"], shard=Shard(**entry["shard"]), places=places))
    return found


def _description(sample: SplitSample, numbers: Mapping[str, int]) -> dict[str, Any]:
    """The content of KEY.json: the row of the index without the position in the tar."""
    video, stored = sample.video, sample.stored
    return {
        "name": video.name,
        "label": video.label,
        "label_index": NO_LABEL if video.label is None else numbers[video.label],
        "group": video.group or "",  # Hugging Face datasets takes null for another type
        "start_s": stored.start_s,
        **dataclasses.asdict(stored.info),
        "crc32": stored.crc32,
        "content": sample.content,
        "reference_stride": stored.reference_stride,
        "reference_phase": stored.reference_phase,
        DESCRIPTION_KEY: DESCRIPTION_FORMAT,
        **video.extra,
    }


def _shard_sample(sample: SplitSample, spool: Path, numbers: Mapping[str, int]) -> ShardSample:
    video, stored = sample.video, sample.stored
    file, offset = video.path, video.member[0] if video.member else 0
    if stored.is_spooled:
        file, offset = stored_file(stored, spool), 0
    return ShardSample(
        key=stored.key,
        description=json.dumps(_description(sample, numbers), ensure_ascii=False).encode(),
        extension=stored.extension,
        file=file,
        offset=offset,
        length=stored.length,
        crc32=stored.crc32,
    )


def _row(sample: SplitSample, place: Place, numbers: Mapping[str, int]) -> Sample:
    fields = _description(sample, numbers) | asdict(place)
    fields["label"] = fields["label_index"]
    return Sample(**{name: fields[name] for name in COLUMNS.names})
