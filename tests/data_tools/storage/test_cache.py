"""The cache of samples: size limit, concurrent and killed processes."""

import fcntl
import multiprocessing
import os
import random
import signal
import time
import zlib
from pathlib import Path

import pytest

from kinemae.data_tools.command import log
from kinemae.data_tools.files import flock
from kinemae.data_tools.storage import cache as cache_module
from kinemae.data_tools.storage.cache import Cache, CacheEntry

SHARDS, SAMPLES, LENGTH = 8, 20, 30_000
MEGABYTE = 1_000_000


def sample(shard: int, number: int) -> bytes:
    return random.Random(shard * 1000 + number).randbytes(LENGTH)


def digest(shard: int) -> str:
    return f"{shard:064x}"[::-1]


def offset(number: int) -> int:
    return 512 + number * (LENGTH + 777)


def on_disk(folder: Path) -> int:
    stored = [*folder.glob("sets/*/*.shard"), *folder.glob("blocks/*")]
    return sum(path.stat().st_blocks * 512 for path in stored)


def entry(cache: Cache, shard: int, data_set: str = "s3://bucket/train") -> CacheEntry:
    return cache.entry(data_set, digest(shard))


def is_stored(cache: Cache, shard: int, number: int, data_set: str = "s3://bucket/train") -> bool:
    return entry(cache, shard, data_set).read(offset(number), LENGTH) == sample(shard, number)


def fill(cache: Cache, data_set: str = "s3://bucket/train") -> list[tuple[int, int]]:
    """Write more samples than there is space for; return those that are stored."""
    for shard in range(SHARDS):
        for number in range(SAMPLES):
            entry(cache, shard, data_set).write(offset(number), sample(shard, number))
            assert on_disk(cache.folder) <= cache.size
    places = [(shard, number) for shard in range(SHARDS) for number in range(SAMPLES)]
    return [place for place in places if is_stored(cache, *place, data_set)]


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(folder=tmp_path / "cache", size=4 * MEGABYTE).check()


def test_written_samples_are_read_and_nothing_else(cache: Cache):
    stored = entry(cache, 0)
    assert stored.read(offset(3), LENGTH).strip(b"\0") == b""
    assert stored.write(offset(3), sample(0, 3)) and stored.write(offset(1), sample(0, 1))
    assert [is_stored(cache, 0, number) for number in (1, 2, 3)] == [True, False, True]
    assert on_disk(cache.folder) < 4 * LENGTH  # holes take no space


def test_a_full_cache_keeps_its_samples(cache: Cache):
    kept = fill(cache)
    assert len(kept) > 0.8 * cache.size / LENGTH
    assert fill(cache) == kept  # as in each epoch: all samples are offered again


def use_until_told(cache: Cache, data_set: str, pipe) -> None:  # type: ignore[no-untyped-def]
    fill(cache, data_set)
    pipe.send("filled")
    pipe.recv()


def test_data_sets_that_no_process_uses_are_evicted_first(cache: Cache, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cache_module, "_RESCAN_S", 0.0)
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=use_until_told, args=(cache, "s3://old", theirs))
    process.start()
    assert ours.recv() == "filled"
    assert len(fill(cache, "s3://new")) == 0  # the other process uses its samples
    ours.send("end")
    process.join()
    assert len(fill(cache, "s3://new")) > 0.8 * cache.size / LENGTH


def test_blocks_without_space_replace_each_other_and_leave_the_samples(cache: Cache):
    blocks = [random.Random(shard).randbytes(5 * LENGTH) for shard in range(60)]
    for shard, block in enumerate(blocks):
        entry(cache, shard).write_block(1000, block, window_bytes=3 * len(block))
        assert on_disk(cache.folder) <= cache.size
    permanent = [
        shard for shard, block in enumerate(blocks) if entry(cache, shard).read(1000, len(block)) == block
    ]
    found = [entry(cache, shard).read_block(1000, 1000 + LENGTH, LENGTH) for shard in range(60)]
    temporary = [shard for shard, block in enumerate(blocks) if found[shard] == block[LENGTH : 2 * LENGTH]]
    assert permanent == list(range(len(permanent))) and len(permanent) > 15
    assert temporary == list(range(60 - len(temporary), 60)) and 3 <= len(temporary) <= 6


def test_blocks_take_the_space_that_they_need_from_samples(cache: Cache):
    before = fill(cache)
    block = random.Random(0).randbytes(5 * LENGTH)
    entry(cache, 99).write_block(0, block, window_bytes=3 * len(block))
    assert entry(cache, 99).read_block(0, 0, len(block)) == block
    assert on_disk(cache.folder) <= cache.size
    left = [place for place in before if is_stored(cache, *place)]
    assert len(left) > 0.4 * len(before)


def test_a_sample_as_large_as_the_cache_is_not_stored(cache: Cache):
    assert not entry(cache, 0).write(0, bytes(cache.size))
    assert on_disk(cache.folder) == 0


def test_a_folder_that_cannot_be_created_is_an_error(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        ValueError, match=r"data.cache_dir=.*file/x cannot be used \(Not a directory\): name a"
    ):
        Cache(folder=tmp_path / "file" / "x", size=1).check()


def test_a_failing_disk_gives_one_warning_and_reads_continue(
    cache: Cache, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(log, "propagate", True)
    entry(cache, 0)._path.mkdir(parents=True)
    for _ in range(3):
        entry(cache, 0).write(0, b"data")
        assert entry(cache, 0).read(0, 4) == b""
    messages = {
        id(record): record.getMessage() for record in caplog.records
    }  # pytest may hear a record twice
    assert ["does not work" in message and "read without it" in message for message in messages.values()] == [
        True
    ]


def test_files_of_other_users_can_be_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path, open_file = tmp_path / "lock", os.open

    def open_as_other_user(name: str, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_RDWR:
            raise PermissionError(13, "Permission denied", name)
        return open_file(name, flags, mode)

    first = cache_module._lock_file(path)
    monkeypatch.setattr(os, "open", open_as_other_user)
    second = cache_module._lock_file(path)
    flock(first.number, fcntl.LOCK_EX)
    with pytest.raises(BlockingIOError):
        flock(second.number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    flock(first.number, fcntl.LOCK_UN)
    assert flock(second.number, fcntl.LOCK_EX | fcntl.LOCK_NB)


def use(
    cache: Cache, seed: int, seconds: float, report: "multiprocessing.Queue[tuple[int, int, int]]"
) -> None:
    """Read samples in random order through the cache, as in training."""
    chance = random.Random(seed)
    hits = misses = most = 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        shard, number = chance.randrange(SHARDS), chance.randrange(SAMPLES)
        expected = sample(shard, number)
        if zlib.crc32(entry(cache, shard).read(offset(number), LENGTH)) == zlib.crc32(expected):
            hits += 1
        else:
            misses += 1
            entry(cache, shard).write(offset(number), expected)
        with cache._locked():
            most = max(most, on_disk(cache.folder))
    report.put((hits, misses, most))


@pytest.mark.slow
def test_processes_share_the_cache_within_its_limit(cache: Cache):
    context = multiprocessing.get_context("fork")
    report = context.Queue()
    processes = [context.Process(target=use, args=(cache, seed, 1.5, report)) for seed in range(4)]
    for process in processes:
        process.start()
    results = [report.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert all(hits > 0 and misses > 0 for hits, misses, _ in results)
    assert max(most for _, _, most in results) <= cache.size


@pytest.mark.slow
def test_killed_processes_leave_the_cache_valid(cache: Cache):
    context = multiprocessing.get_context("fork")
    report = context.Queue()
    chance = random.Random(0)
    for seed in range(12):
        process = context.Process(target=use, args=(cache, seed, 60.0, report))
        process.start()
        time.sleep(chance.uniform(0.02, 0.2))
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert on_disk(cache.folder) <= cache.size
        with cache._locked() as ledger:  # a lock that outlives its holder would block here forever
            assert cache_module._read_ledger(ledger)[0] >= on_disk(cache.folder)
    right = wrong = 0
    for shard in range(SHARDS):
        for number in range(SAMPLES):
            found = entry(cache, shard).read(offset(number), LENGTH)
            right += found == sample(shard, number)
            wrong += found != sample(shard, number) and zlib.crc32(found) == zlib.crc32(sample(shard, number))
    assert right > 0 and wrong == 0
    assert is_stored(cache, 1, 0) or entry(cache, 1).write(offset(0), sample(1, 0)) in (True, False)
