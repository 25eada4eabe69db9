"""OUT, here or remote, and the folder of this machine in which its files are made before they get there.

    WORK/checked.jsonl     what is known of each video
    WORK/spool/            samples that lie in no shard yet
    WORK/shards.jsonl      the shards that are finished
    WORK/lock              held while a process writes to OUT

WORK is OUT/work unless the config names another; for a remote OUT it lies in the user's cache. A shard of a
local OUT is written in place, one of a remote OUT in WORK, and uploaded. It is finished when it has its line
in shards.jsonl, and only then are its samples removed from the spool.
"""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from kinemae.data_tools.command import DataError, log
from kinemae.data_tools.files import atomic_write_text, flock, read_jsonl
from kinemae.data_tools.index import DATASET_NAME, INDEX_NAME, Shard
from kinemae.data_tools.manifest.videos import SPLITS
from kinemae.data_tools.sharding.tar_writer import Place, ShardSample, shard_name, write_shard
from kinemae.data_tools.sharding.transcode import SPOOL_NAME
from kinemae.data_tools.storage.location import Location

WORK_NAME = "work"
_FINISHED_NAME = "shards.jsonl"


@dataclass(frozen=True, kw_only=True)
class FinishedShard:
    """A shard that is in OUT."""

    split: str
    shard: Shard
    places: tuple[Place, ...]


class Output:
    """Where shards go, and which of them are there already."""

    def __init__(self, out: Location, work_dir: str | None):
        self.out = out
        self.work = _work_folder(out, work_dir)
        self._finished: dict[tuple[str, str], FinishedShard] = {}

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Hold the work folder for this process alone, and take up what an earlier run left there.

        Raises:
            DataError: another process writes to OUT.
        """
        self.work.mkdir(parents=True, exist_ok=True)
        with (self.work / "lock").open("w") as lock:
            try:
                has_locks = flock(lock.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise DataError(f"another process writes to {self.out} now: wait for it") from error
            if not has_locks:
                log.warning(
                    "%s is on a file system without locks (flock): run one command at a time for %s",
                    *(self.work, self.out),
                )
            self._finished = self._still_there(_read_finished(self.work / _FINISHED_NAME))
            self._remember()
            yield

    def is_sharded(self, key: str) -> bool:
        """Whether a finished shard holds the sample."""
        return key in self._keys

    def split_folder(self, split: str) -> Path:
        """Where the files of a split are made."""
        folder = (self.out.path or self.work) / split
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def write_shard(self, split: str, number: int, group: Sequence[ShardSample]) -> FinishedShard:
        """Make a shard, or take the one that is there.

        Raises:
            DataError: the disk is full, a video has changed since it was checked, or the upload fails.
        """
        there = self._finished.get((split, shard_name(number)))
        if there is not None and _holds(there, group):
            return there
        if there is not None:
            del self._finished[(split, shard_name(number))]
            self._remember()
        folder = self.split_folder(split)
        shard, places = write_shard(folder, number, group)
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

    def publish_index(self, split: str) -> None:
        """Bring the index of a split to a remote OUT, what makes the data set complete last."""
        for name in (INDEX_NAME, DATASET_NAME):
            self._upload(split, name)

    def write_text(self, name: str, text: str) -> None:
        """A small file of OUT, such as train/rejected.jsonl."""
        place = self.out
        for part in name.split("/"):
            place = place / part
        place.write(text.encode())

    def remove_work(self) -> None:
        """Leave nothing of the work folder."""
        shutil.rmtree(self.work, ignore_errors=True)

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
            log.warning("%s lacks %d shards that were finished", self.out, len(finished) - len(there))
        return there

    def _remember(self) -> None:
        """Write down what is finished, without the half line of a run that was killed."""
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
