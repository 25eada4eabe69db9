"""Files of a data set and their changes: `dataset.json` names the files and is replaced last.

    dataset.json   {"format": 3, "files": {"index": {"name": ..., "sha256": ..., "rows": ...}, ...}, ...}
    index.arrow    one row per sample; `index-DIGEST.arrow` after a change
    shards.arrow   one row per shard
    removed.arrow  numbers of removed rows, if there are any

A change writes new files under new names. Readers of the old state keep its files: they are deleted by the
next change. Format 2 has the shards in dataset.json and one other file, index.arrow.
"""

import fcntl
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kinemae.data_tools.command import DataError, log, writing_to
from kinemae.data_tools.files import Descriptor, flock
from kinemae.data_tools.storage.location import Location, StorageError

FORMAT = 3
DATASET_NAME = "dataset.json"
INDEX_NAME = "index.arrow"
ABSENT = b""
"""The base of a change that makes a new data set and replaces none."""
_LOCK_NAME = "dataset.lock"
_ROLES = ("index", "shards", "removed")
_NAMES = re.compile(rf"({'|'.join(_ROLES)})(-[0-9a-f]+)?\.arrow")
_DELETABLE = re.compile(rf"{_NAMES.pattern}|[^/]+\.tar")


@dataclass(frozen=True, kw_only=True)
class DataFile:
    """A file of a data set: its name in the folder, its sha256 ("" if unknown), and its number of rows."""

    name: str
    sha256: str
    rows: int


def files_of(description: Mapping[str, Any]) -> dict[str, DataFile]:
    """The files that a dataset.json names, by role: index, shards, removed.

    Raises:
        KeyError, TypeError, ValueError: the description is damaged.
    """
    if description["format"] != FORMAT:
        digest = description.get("index_sha256", "")
        return {"index": DataFile(name=INDEX_NAME, sha256=digest, rows=description["samples"])}
    files = {role: DataFile(**file) for role, file in description["files"].items() if file is not None}
    for role, file in files.items():
        if role not in _ROLES or not _NAMES.fullmatch(file.name):
            raise ValueError(f"unknown file {file.name!r}")
    return files


def fingerprint(shard_digests: Iterable[str], files: Mapping[str, DataFile]) -> str:
    """Digest of the content of a data set: its shards, rows and removed rows; independent of the location.

    Args:
        shard_digests: the sha256 of all shards. Their names, in the file of shards, do not matter.
    """
    digests = [*shard_digests, *(files[role].sha256 for role in ("index", "removed") if role in files)]
    return hashlib.sha256("".join(digests).encode()).hexdigest()[:16]


class DataSetChange:
    """A change of a data set, or a new one: locks the folder, collects new files, and commits all at once.

    Without a commit nothing changes.

    Args:
        folder: where dataset.json is, or will be.
        base: the dataset.json on which the change is based; `ABSENT`: there must be none; None replaces any.
    """

    def __init__(self, folder: Location, base: bytes | None = None):
        self.folder = folder
        self._base = base
        self._current: bytes | None = None
        self._files: dict[str, DataFile | None] = {}
        self._replaced: list[str] = []
        self._is_committed = False
        self._stack = ExitStack()

    def __enter__(self) -> "DataSetChange":
        try:
            if self.folder.path is not None:
                self._stack.enter_context(_Lock(self.folder.path))
                self._scratch = self.folder.path
            else:
                temporary = tempfile.TemporaryDirectory(prefix="kinemae-change-")
                self._scratch = Path(self._stack.enter_context(temporary))
            self._current = _read(self.folder)
            if self._base is not None and (self._current or ABSENT) != self._base:
                raise self._changed()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        for role in _ROLES:
            self.partial(role).unlink(missing_ok=True)
        added = {file.name for file in self._files.values() if file is not None}
        if added and not self._is_committed:
            used, _ = _known_files(_read(self.folder))  # possibly by now the state of another process
            for name in sorted(added - {file.name for file in used.values()}):
                (self.folder / name).remove()
        self._stack.close()

    @property
    def files(self) -> dict[str, DataFile]:
        """The files of the current state by role; empty for a new data set."""
        return _known_files(self._current)[0]

    def partial(self, role: str) -> Path:
        """The local path at which the new file of a role is written."""
        return self._scratch / f"{role}.arrow.partial"

    def add_file(self, role: str, rows: int) -> DataFile:
        """Take the file at `partial(role)` for the next state, under a name that no other state uses."""
        partial = self.partial(role)
        with writing_to(self._scratch), partial.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            os.fsync(file.fileno())
        added = DataFile(name=self._name(role, sha256), sha256=sha256, rows=rows)
        if self.folder.path is not None:
            partial.replace(self.folder.path / added.name)
        else:
            (self.folder / added.name).upload(partial)
            partial.unlink()
        self._files[role] = added
        return added

    def replace_shards(self, names: Iterable[str]) -> None:
        """Mark shards that are not in the next state; the change after this one deletes them."""
        self._replaced += names

    def commit(self, content: Mapping[str, Any], shards: Sequence[tuple[str, str]]) -> None:
        """Replace dataset.json; roles without a new file keep theirs.

        Args:
            content: the other fields of dataset.json.
            shards: name and sha256 of each shard.

        Raises:
            DataError: another process changed the data set meanwhile.
        """
        old, older = _known_files(self._current)
        files = {role: self._files.get(role, old.get(role)) for role in _ROLES}
        used = {role: file for role, file in files.items() if file is not None}
        names = {*(file.name for file in used.values()), *(name for name, _ in shards)}
        description = {
            "format": FORMAT,
            "samples": used["index"].rows - (used["removed"].rows if "removed" in used else 0),
            "files": {role: None if file is None else asdict(file) for role, file in files.items()},
            "previous": sorted({*self._replaced, *(file.name for file in old.values())} - names),
            "fingerprint": fingerprint([sha256 for _, sha256 in shards], used),
            **content,
        }
        self._replace(json.dumps(description, indent=1, ensure_ascii=False).encode())
        self._is_committed = True
        stale = older | self._left_behind()
        for name in sorted(stale - names - {file.name for file in old.values()}):
            (self.folder / name).remove()

    def _replace(self, state: bytes) -> None:
        """Replace the current dataset.json if it is still there; S3 compares it when it is replaced."""
        target = self.folder / DATASET_NAME
        # The etag is read before the content: a later one could belong to a newer state.
        etag = "" if self._current is None else target.etag()
        if _read(self.folder) != self._current:
            raise self._changed()
        try:
            target.write(state, expected_etag=etag)
        except StorageError as error:
            if error.status in (409, 412):
                raise self._changed() from error
            raise

    def drop(self, role: str) -> None:
        """Remove the file of a role from the next state."""
        self._files[role] = None

    def _left_behind(self) -> set[str]:
        """Names of local files that a killed process may have left."""
        if self.folder.path is None:
            return set()
        return {path.name for path in self.folder.path.glob("*.arrow") if _NAMES.fullmatch(path.name)}

    def _name(self, role: str, sha256: str) -> str:
        if self._current is None and self.folder.path is not None:  # the folder is locked
            return f"{role}.arrow"
        same = self.files.get(role)
        return same.name if same and same.sha256 == sha256 else f"{role}-{sha256[:16]}.arrow"

    def _changed(self) -> DataError:
        if self._base == ABSENT:
            return DataError(
                f"{self.folder}: expected a new folder, got a data set: another process made it; "
                "fix: give another OUT"
            )
        return DataError(
            f"{self.folder}: expected the data set that was opened, got another {DATASET_NAME}: another "
            "process changed it; fix: run the command again"
        )


def delete_previous(folder: Location) -> None:
    """Delete the files of the previous state; readers of that state fail."""
    with DataSetChange(folder):
        for name in sorted(_known_files(_read(folder))[1]):
            (folder / name).remove()


def _known_files(current: bytes | None) -> tuple[dict[str, DataFile], set[str]]:
    """The files of a state by role, and the names of the files of the previous state."""
    try:
        description = json.loads(current or b"{}")
        previous = {name for name in description.get("previous", ()) if _DELETABLE.fullmatch(name)}
        return files_of(description) if description else {}, previous
    except (ValueError, KeyError, TypeError, AttributeError):  # damaged: replaced, and its files stay
        return {}, set()


def _read(folder: Location) -> bytes | None:
    try:
        return (folder / DATASET_NAME).read()
    except StorageError as error:
        if error.is_missing:
            return None
        raise


class _Lock:
    """A lock file in a local folder, held by one process; removed at the end."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._path = folder / _LOCK_NAME

    def __enter__(self) -> None:
        while True:
            with writing_to(self._folder):
                self._folder.mkdir(parents=True, exist_ok=True)
                lock = Descriptor(str(self._path), os.O_RDWR | os.O_CREAT)
            try:
                has_locks = flock(lock.number, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise DataError(
                    f"{self._folder}: expected one writer, got another process that writes to this data set; "
                    "fix: wait for it"
                ) from error
            if not has_locks:
                log.warning("%s has no file locks (flock): change one data set at a time", self._folder)
            if lock.is_at(self._path):  # else the last holder removed it in between
                self._lock = lock
                return

    def __exit__(self, *exception: object) -> None:
        self._path.unlink(missing_ok=True)
        del self._lock
