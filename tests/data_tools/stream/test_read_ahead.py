"""Read-ahead: the same batches, reads in flight within limits, and the same errors."""

import threading
import time
from pathlib import Path

import pytest
import torch

from kinemae.data_tools import heartbeat
from kinemae.data_tools.index import open_index
from kinemae.data_tools.storage.location import RetryPolicy, location
from kinemae.data_tools.stream.evaluation_clips import EvaluationVideos
from kinemae.data_tools.stream.loader import (
    AugmentConfig,
    ClipConfig,
    TrainingClips,
    read_items,
    training_loader,
)
from kinemae.data_tools.stream.order import plan_batch
from kinemae.data_tools.stream.read_ahead import ReadAhead, Request, reading_ahead, take
from tests.faulty_server import FaultyServer

CLIP = ClipConfig(frames=4, stride=2, size=24)
QUICK = RetryPolicy(attempts=2, idle_s=5.0, total_s=10.0, pause_s=0.01)


class Reads:
    """Reads that wait for `allowed` and count how many run at a time."""

    def __init__(self) -> None:
        self.allowed = threading.Event()
        self.begun: list[int] = []

    def request(self, number: int, length: int = 10) -> Request:
        def read() -> bytes:
            self.begun.append(number)
            assert self.allowed.wait(60)
            if number < 0:
                raise OSError("broken")
            return bytes([number])

        return Request(key=number, length=length, read=read)

    def wait_for(self, count: int) -> list[int]:
        end_s = time.monotonic() + 60
        while len(self.begun) < count and time.monotonic() < end_s:
            time.sleep(0.01)
        time.sleep(0.05)  # for one that must not begin
        return sorted(self.begun)


def test_reads_begin_before_they_are_needed_and_at_most_depth_are_in_flight():
    reads, ahead = Reads(), ReadAhead(3)
    ahead.plan(reads.request(number) for number in range(6))
    assert reads.wait_for(3) == [0, 1, 2] and not ahead.wants_more
    reads.allowed.set()
    assert ahead.take(0) == b"\0"
    assert reads.wait_for(4) == [0, 1, 2, 3]
    assert [ahead.take(number) for number in (1, 4)] == [b"\1", b"\4"]  # 2 and 3 were skipped
    assert ahead.take(3) is None and ahead.take(9) is None
    assert ahead.take(5) == b"\5" and ahead.wants_more


def test_large_samples_are_read_ahead_within_a_limit_of_bytes():
    reads, ahead = Reads(), ReadAhead(8, max_bytes=100)
    ahead.plan(reads.request(number, length=length) for number, length in enumerate((300, 40, 40, 40)))
    assert reads.wait_for(1) == [0]
    reads.allowed.set()
    assert ahead.take(0) == b"\0"
    assert reads.wait_for(3) == [0, 1, 2]


def test_the_same_sample_twice_is_read_twice():
    reads, ahead = Reads(), ReadAhead(4)
    reads.allowed.set()
    ahead.plan([reads.request(1), reads.request(1)])
    assert ahead.take(1) == ahead.take(1) == b"\1"


def test_a_failed_read_gives_nothing_and_its_heartbeats_reach_the_caller():
    reads, ahead, seen = Reads(), ReadAhead(2), []

    class Seen(heartbeat.Listener):
        def progress(self) -> None:
            seen.append(threading.current_thread())

    def slow() -> bytes:
        for _ in range(5):
            heartbeat.progress()
            time.sleep(0.1)
        return b"slow"

    reads.allowed.set()
    with heartbeat.listening(Seen()), reading_ahead(ahead):
        ahead.plan([reads.request(-1), Request(key="slow", length=1, read=slow)])
        assert take(-1) is None
        assert take("slow") == b"slow"
    assert set(seen) == {threading.current_thread()}
    assert take("slow") is None  # outside the block


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.processes)])
@pytest.mark.parametrize("clips", [1, 8])
def test_batches_are_the_same_and_reads_overlap(shards: Path, server: FaultyServer, workers: int, clips: int):
    in_flight, most = 0, 0
    lock = threading.Lock()

    def slow(method: str, path: str) -> None:
        nonlocal in_flight, most
        with lock:
            in_flight += 1
            most = max(most, in_flight)
        time.sleep(0.02)
        with lock:
            in_flight -= 1

    index = open_index(location(f"{server.url}/train", retry_policy=QUICK))
    server.fault = slow
    plan, steps = plan_batch(clips, clips, 1, 1), {"rank": 0, "first_step": 3, "last_step": 3 + 24 // clips}

    def load(index, **options):  # type: ignore[no-untyped-def]
        stream = TrainingClips(index, clip=CLIP, augment=AugmentConfig(), seed=3)
        return list(training_loader(stream, plan, pin=False, timeout_s=60.0, **steps, **options))

    found = load(index, workers=workers, read_ahead=6)
    assert most > max(workers, 1) + 1
    for batch, expected in zip(found, load(open_index(shards), workers=0, read_ahead=0), strict=True):
        assert batch.keys == expected.keys and batch.skipped == ()
        assert torch.equal(batch.clip_BCTHW, expected.clip_BCTHW)


def test_evaluation_reads_ahead_too(shards: Path, server: FaultyServer):
    index = open_index(location(f"{server.url}/train", retry_policy=QUICK))
    videos = EvaluationVideos(index, range(5), clip=CLIP, temporal_clips=1, spatial_crops=1)
    server.requests.clear()
    items = read_items(videos, 0, 60.0, read_ahead=4)
    first = next(items)
    end_s = time.monotonic() + 30
    while len(server.requests) < 4 and time.monotonic() < end_s:
        time.sleep(0.01)
    assert len(server.requests) >= 4
    assert [first.position, *(item.position for item in items)] == [0, 1, 2, 3, 4]
    assert len(server.requests) == 5  # each video once


def test_a_bad_sample_is_skipped_as_without_read_ahead(shards: Path):
    index = open_index(shards)
    sample = index.sample(2)
    path = shards / index.shards[sample.shard].name
    content = bytearray(path.read_bytes())
    content[sample.offset + 100] ^= 16
    path.write_bytes(content)
    plan = plan_batch(len(index), len(index), 1, 1)
    steps = {"rank": 0, "first_step": 0, "last_step": 1, "workers": 0, "pin": False}
    stream = TrainingClips(index, clip=CLIP, augment=AugmentConfig(), seed=3)
    [plain], [ahead] = (list(training_loader(stream, plan, **steps, read_ahead=depth)) for depth in (0, 5))
    assert plain.skipped == ahead.skipped and [clip.key for clip in ahead.skipped] == [sample.key]
    assert torch.equal(plain.clip_BCTHW, ahead.clip_BCTHW)
