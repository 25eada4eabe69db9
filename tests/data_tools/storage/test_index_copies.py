"""Local copies of remote indexes: consistent, shared by processes, limited in number."""

import errno
import fcntl
import json
import multiprocessing
import os
import shutil
import tempfile
import time
from pathlib import Path

import pytest

from kinemae.data_tools.command import DataError
from kinemae.data_tools.index import DATASET_NAME, INDEX_NAME, open_index, write_index
from kinemae.data_tools.storage import cache as cache_module
from kinemae.data_tools.storage.cache import Cache
from kinemae.data_tools.storage.location import Location, RetryPolicy, location
from tests.faulty_server import FaultyServer

QUICK = RetryPolicy(attempts=2, idle_s=2.0, total_s=5.0, pause_s=0.01)


@pytest.fixture
def folder(server: FaultyServer) -> Location:
    return location(f"{server.url}/train", retry_policy=QUICK)


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(folder=tmp_path / "cache", size=10**8)


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A temporary folder of the test alone."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return tmp_path / "tmp"


def publish_backwards(shards: Path, into: Path) -> None:
    """Write the same samples in another order, as a later publication may."""
    index = open_index(shards)
    samples = [index.sample(position) for position in reversed(range(len(index)))]
    into.mkdir()
    write_index(into, samples, index.shards, index.classes, {})


@pytest.mark.parametrize("cached", [False, True])
def test_an_index_with_another_sha256_is_an_error(
    shards: Path, folder: Location, cache: Cache, tmp_path: Path, cached: bool
):
    publish_backwards(shards, tmp_path / "new")
    shutil.copy(tmp_path / "new" / INDEX_NAME, shards / INDEX_NAME)  # the upload stops here
    with pytest.raises(DataError, match=r"is not the file that dataset.json describes: .*; fix: publish"):
        open_index(folder, cache=cache if cached else None)
    assert not list(cache.folder.rglob("*.arrow*"))


@pytest.mark.parametrize("cached", [False, True])
def test_a_publication_during_the_copy_is_read_again(
    shards: Path, server: FaultyServer, folder: Location, cache: Cache, tmp_path: Path, cached: bool
):
    publish_backwards(shards, tmp_path / "new")
    keys = [open_index(tmp_path / "new", check_shards=False).sample(0).key]

    def publish(method: str, path: str) -> None:
        """After the old description was read: both files change."""
        if path.endswith(INDEX_NAME):
            server.fault = lambda method, path: None
            for name in (INDEX_NAME, DATASET_NAME):
                shutil.copy(tmp_path / "new" / name, shards / name)

    server.fault = publish
    index = open_index(folder, cache=cache if cached else None)
    assert [index.sample(0).key] == keys


def test_old_copies_are_removed_unless_in_use(shards: Path, folder: Location, cache: Cache):
    in_use = open_index(folder, cache=cache)
    description = json.loads((shards / DATASET_NAME).read_text())
    for number in range(12):
        (shards / DATASET_NAME).write_text(json.dumps({**description, "made_by": {"number": number}}))
        last = open_index(folder, cache=cache)
    copies = list((cache.folder / "indexes").iterdir())
    assert len(copies) == 9  # the newest 8 and the one in use
    assert {in_use.local_index.folder, last.local_index.folder} <= set(copies)
    del in_use
    (shards / DATASET_NAME).write_text(json.dumps({**description, "made_by": {"number": 99}}))
    open_index(folder, cache=cache)
    assert len(list((cache.folder / "indexes").iterdir())) == 8


def open_it(folder: Location, cache: Cache | None, opened: object, leave: Path) -> None:
    index = open_index(folder, cache=cache)
    opened.put(len(index))  # type: ignore[attr-defined]
    while not leave.exists():
        time.sleep(0.01)


@pytest.mark.processes
@pytest.mark.parametrize("cached", [False, True])
def test_processes_use_one_copy_at_the_same_time(
    folder: Location, server: FaultyServer, cache: Cache, temporary: Path, cached: bool
):
    context = multiprocessing.get_context("spawn")  # a running fork server has another TMPDIR
    opened, leave = context.Queue(), temporary / "leave"
    arguments = (folder, cache if cached else None, opened, leave)
    processes = [context.Process(target=open_it, args=arguments) for _ in range(3)]
    for process in processes:
        process.start()
    assert len({opened.get(timeout=60) for _ in processes}) == 1  # while all of them hold it
    assert len(open_index(folder, cache=arguments[1])) > 0
    killed, *others = processes
    killed.kill()
    killed.join(60)
    assert len(copies(cache if cached else None)) == 1  # the others use it
    leave.touch()
    for process in others:
        process.join(60)
    requested = [path for _, path, _ in server.requests if path.endswith(INDEX_NAME)]
    assert len(requested) == 1
    assert len(copies(cache if cached else None)) == cached  # the last one removed the temporary copy


def copies(cache: Cache | None) -> list[Path]:
    folder = Path(tempfile.gettempdir()) / f"kinemae-{os.getuid()}" if cache is None else cache.folder
    return list((folder / "indexes").iterdir())


def test_a_temporary_copy_of_a_killed_process_is_removed_by_the_next_one(folder: Location, temporary: Path):
    index = open_index(folder)
    [copy] = copies(None)
    left = copy.with_name("left by a killed process")
    shutil.copytree(copy, left)
    del index
    assert copies(None) == [left]
    index = open_index(folder)
    assert copies(None) == [copy] and len(index) > 0


def test_a_copy_that_is_made_again_before_its_lock_is_held_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    copy, real = tmp_path / "copy", cache_module.flock

    def made_again(descriptor: int, operation: int) -> bool:
        shutil.rmtree(copy)
        copy.mkdir()
        (copy / "lock").touch()
        return real(descriptor, operation)

    copy.mkdir()
    (copy / "lock").touch()
    with monkeypatch.context() as patched:
        patched.setattr(cache_module, "flock", made_again)
        cache_module._remove_unused(copy)
    assert (copy / "lock").exists()
    cache_module._remove_unused(copy)
    assert not copy.exists()


@pytest.mark.parametrize("mode", [0o777, 0o720])
def test_a_temporary_folder_that_others_can_write_is_refused(folder: Location, temporary: Path, mode: int):
    place = temporary / f"kinemae-{os.getuid()}"
    place.mkdir()
    place.chmod(mode)
    with pytest.raises(DataError, match="expected a folder that only this user can write, got another; fix"):
        open_index(folder)


def test_a_cache_without_locks_works(folder: Location, cache: Cache, monkeypatch: pytest.MonkeyPatch):
    def no_locks(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    assert len(open_index(folder, cache=cache)) == len(open_index(folder, cache=cache))
