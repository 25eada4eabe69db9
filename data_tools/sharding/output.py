"""OUT, local or remote, and the local work folder in which its files are written.

    WORK/transcoded.jsonl  the results of videos that are in no finished window yet
    WORK/spool/            samples that are in no shard yet
    WORK/windows.jsonl     the finished windows, see `windows.py`
    WORK/lock              held while a process writes to OUT

WORK is OUT/work unless the config sets `work_dir`; for a remote OUT it is in the user's cache. Then OUT/work
has a copy of each finished window, so that another machine can continue. Shards of a local OUT are written in
place; those of a remote OUT are written in WORK and uploaded one by one.

A part writes its tars to OUT, and all its other files to OUT/parts/PART, see `parts.py`.
"""

import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from kinemae.data_tools.command import DataError, log
from kinemae.data_tools.files import flock
from kinemae.data_tools.index import Shard
from kinemae.data_tools.sharding.parts import Part
from kinemae.data_tools.sharding.tar_writer import Place, ShardSample, write_shard
from kinemae.data_tools.sharding.transcode import SPOOL_NAME
from kinemae.data_tools.storage.location import Location

WORK_NAME = "work"


class Output:
    """The folder or URL that gets the shards.

    Attributes:
        out: gets all files except the tars.
        work, spool: folders of this machine.
        copies: gets copies of the finished windows; None if `work` is in OUT.
    """

    def __init__(self, root: Location, work_dir: str | None, part: Part | None = None):
        self._root = root
        self._part = part
        self.out = root if part is None else part.folder(root)
        self.work = _work_folder(self.out, work_dir)
        self.spool = self.work / SPOOL_NAME
        is_inside = self.out.path is not None and self.work == self.out.path / WORK_NAME
        self.copies = None if is_inside else self.out / WORK_NAME

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Lock the work folder for this process.

        Raises:
            DataError: another process writes to OUT.
        """
        self.spool.mkdir(parents=True, exist_ok=True)
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
            yield

    def write_shard(self, split: str, number: int, group: Sequence[ShardSample]) -> tuple[Shard, list[Place]]:
        """Write a shard.

        Raises:
            DataError: the disk is full, a video has changed since it was checked, or the upload failed.
        """
        folder = (self._root.path or self.work) / split
        folder.mkdir(parents=True, exist_ok=True)
        prefix = self._part.prefix if self._part else "shard"
        shard, places = write_shard(folder, number, group, prefix=prefix)
        if self._root.path is None:
            (self._root / split / shard.name).upload(folder / shard.name)
            (folder / shard.name).unlink()
        return shard, places

    def shard_sizes(self, split: str) -> dict[str, int | None]:
        """The sizes of the shards in OUT by name."""
        return (self._root / split).list_sizes()

    def shard_reference(self, split: str, name: str) -> str:
        """The name of a shard in the index of the split; relative, so that OUT can be moved."""
        return name if self._part is None else f"../../../{split}/{name}"

    def write_text(self, name: str, text: str) -> None:
        """Write a small file of OUT, such as train/rejected.jsonl."""
        (self.out / name).write(text.encode())

    def remove_work(self) -> None:
        """Remove the work folder, and the copies in OUT."""
        shutil.rmtree(self.work, ignore_errors=True)
        if self.copies is None:
            return
        for name in self.copies.list():
            (self.copies / name).remove()
        if self.copies.path is not None:
            shutil.rmtree(self.copies.path, ignore_errors=True)


def _work_folder(out: Location, work_dir: str | None) -> Path:
    name = hashlib.sha256(str(out if out.path is None else out.path.resolve()).encode()).hexdigest()[:16]
    if work_dir is not None:
        return Path(work_dir) / f"shard-{name}"
    if out.path is not None:
        return out.path / WORK_NAME
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "kinemae" / f"shard-{name}"
