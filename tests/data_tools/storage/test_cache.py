"""The cache of samples: size limit, concurrent and killed processes."""

import multiprocessing
import os
import random
import signal
import time
import zlib
from pathlib import Path

import pytest

from kinemae.data_tools.command import log
from kinemae.data_tools.storage import cache as cache_module
from kinemae.data_tools.storage.cache import Cache

SHARDS, SAMPLES, LENGTH = 8, 20, 30_000
MEGABYTE = 1_000_000


def sample(shard: int, number: int) -> bytes:
    return random.Random(shard * 1000 + number).randbytes(LENGTH)


def digest(shard: int) -> str:
    return f"{shard:064x}"[::-1]


def offset(number: int) -> int:
    return 512 + number * (LENGTH + 777)


def on_disk(folder: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in folder.glob("*.shard"))


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(folder=tmp_path / "cache", size=4 * MEGABYTE).check()


def test_written_samples_are_read_and_nothing_else(cache: Cache):
    assert cache.read(digest(0), offset(3), LENGTH).strip(b"\0") == b""
    cache.write(digest(0), offset(3), sample(0, 3))
    cache.write(digest(0), offset(1), sample(0, 1))
    assert cache.read(digest(0), offset(3), LENGTH) == sample(0, 3)
    assert cache.read(digest(0), offset(1), LENGTH) == sample(0, 1)
    assert cache.read(digest(0), offset(2), LENGTH).strip(b"\0") == b""
    assert on_disk(cache.folder) < 4 * LENGTH  # holes take no space


def test_the_size_limit_holds_and_recent_samples_stay(cache: Cache):
    for shard in range(SHARDS):
        for number in range(SAMPLES):
            cache.write(digest(shard), offset(number), sample(shard, number))
            assert on_disk(cache.folder) <= cache.size
        os.utime(cache.folder / f"{digest(shard)[:40]}.shard", (shard, shard))
    there = [cache.read(digest(shard), offset(7), LENGTH) == sample(shard, 7) for shard in range(SHARDS)]
    assert there[-1] and not there[0] and there == sorted(there)


def test_a_sample_as_large_as_the_cache_is_not_stored(cache: Cache):
    cache.write(digest(0), 0, bytes(cache.size))
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
    (cache.folder / f"{digest(0)[:40]}.shard").mkdir()
    for _ in range(3):
        cache.write(digest(0), 0, b"data")
        assert cache.read(digest(0), 0, 4) == b""
    messages = {
        id(record): record.getMessage() for record in caplog.records
    }  # pytest may hear a record twice
    assert ["does not work" in message and "read without it" in message for message in messages.values()] == [
        True
    ]


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
        if zlib.crc32(cache.read(digest(shard), offset(number), LENGTH)) == zlib.crc32(expected):
            hits += 1
        else:
            misses += 1
            cache.write(digest(shard), offset(number), expected)
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
            assert cache_module._used(ledger) >= on_disk(cache.folder)
    right = wrong = 0
    for shard in range(SHARDS):
        for number in range(SAMPLES):
            found = cache.read(digest(shard), offset(number), LENGTH)
            right += found == sample(shard, number)
            wrong += found != sample(shard, number) and zlib.crc32(found) == zlib.crc32(sample(shard, number))
    assert right > 0 and wrong == 0
    cache.write(digest(1), offset(0), sample(1, 0))
    assert cache.read(digest(1), offset(0), LENGTH) == sample(1, 0)
