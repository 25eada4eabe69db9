"""Storage outages: reads wait, then stop the run; no sample is rejected."""

import errno
import os
import shutil
import time
from pathlib import Path

import pytest
import torch

from kinemae.data_tools.command import Stopped, exit_code_of
from kinemae.data_tools.exit_codes import EXIT_STUCK
from kinemae.data_tools.index import ShardIndex, open_index
from kinemae.data_tools.storage.location import RetryPolicy, StorageError, StorageUnavailable, location
from kinemae.data_tools.stream.batch import ClipBatch
from kinemae.data_tools.stream.container import BadVideo
from kinemae.data_tools.stream.evaluation_clips import EvaluationItem
from kinemae.data_tools.stream.loader import (
    AugmentConfig,
    ClipConfig,
    TrainingClips,
    evaluation_loader,
    training_loader,
)
from kinemae.data_tools.stream.order import plan_batch
from kinemae.data_tools.stream.video_reader import read_video
from tests.faulty_server import FaultyServer

CLIP = ClipConfig(frames=4, stride=2, size=24)
QUICK = RetryPolicy(attempts=2, idle_s=0.5, total_s=1.0, pause_s=0.01)
PATIENT = RetryPolicy(attempts=2, idle_s=0.5, total_s=1.0, pause_s=0.01, outage_s=60.0)


def index_at(server: FaultyServer, retry_policy: RetryPolicy) -> ShardIndex:
    return open_index(location(f"{server.url}/train", retry_policy=retry_policy))


def clips_of(index: ShardIndex) -> TrainingClips:
    return TrainingClips(index, clip=CLIP, augment=AugmentConfig(), seed=3)


def load(index: ShardIndex, **options) -> list[ClipBatch]:  # type: ignore[no-untyped-def]
    coordinates = {"rank": 0, "first_step": 0, "last_step": 2, "pin": False, "timeout_s": 60.0, "workers": 0}
    clips = options.pop("clips", 4)
    plan = plan_batch(clips, clips, 1, 1)
    return list(training_loader(clips_of(index), plan, **{**coordinates, **options}))


def evaluate(index: ShardIndex, **options) -> list[EvaluationItem]:  # type: ignore[no-untyped-def]
    items = evaluation_loader(
        index, clip=CLIP, temporal_clips=1, spatial_crops=1, rank=0, world=1, workers=0, samples=[0, 1, 2]
    )
    return list(items)


def down_for(server: FaultyServer, seconds: float, fault: str | int = 503) -> None:
    """Fail all requests of shards."""
    until_s: list[float] = []

    def answer(method: str, path: str) -> str | int | None:
        if not path.endswith(".tar"):
            return None
        until_s[:] = until_s or [time.monotonic() + seconds]
        return fault if time.monotonic() < until_s[0] else None

    server.fault = answer


@pytest.mark.parametrize("fault", [503, 500, 429, "slow", "reset"])
def test_an_outage_is_not_a_bad_video(server: FaultyServer, fault: str | int):
    index = index_at(server, QUICK)
    server.fault = lambda method, path: fault
    for read in (load, evaluate):
        with pytest.raises(StorageUnavailable, match=r"sample .*: cannot read http.*, retried for") as caught:
            read(index)
        assert exit_code_of(caught.value) == EXIT_STUCK
    server.fault = lambda method, path: None
    assert all(batch.weight_B.tolist() == [1.0] * 4 for batch in load(index))


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.processes)])
@pytest.mark.slow
def test_reads_wait_for_an_outage_and_give_the_same_batches(shards: Path, server: FaultyServer, workers: int):
    index, reports = index_at(server, PATIENT), []
    down_for(server, 1.5)
    batches = load(index, workers=workers, on_outage=reports.append)
    for batch, expected in zip(batches, load(open_index(shards)), strict=True):
        assert batch.keys == expected.keys and batch.skipped == ()
        assert torch.equal(batch.clip_BCTHW, expected.clip_BCTHW)
    assert "HTTP 503" in reports[0] and reports[-1] == ""


@pytest.mark.slow
def test_evaluation_waits_too(shards: Path, server: FaultyServer):
    index = index_at(server, PATIENT)
    down_for(server, 0.5)
    assert [item.skipped for item in evaluate(index)] == [None] * 3


@pytest.mark.processes
def test_the_wait_for_an_outage_is_limited_once_and_not_per_sample(server: FaultyServer):
    index = index_at(server, RetryPolicy(attempts=1, idle_s=0.5, total_s=0.5, outage_s=5.0))
    server.fault = lambda method, path: 503
    begin_s = time.monotonic()
    with pytest.raises(StorageUnavailable, match=r"HTTP 503.*; still so after [5-9] s of waiting"):
        load(
            index, workers=1, timeout_s=3.0
        )  # shorter than the wait: a waiting worker does not count as hung
    assert time.monotonic() - begin_s < 8 * 5.0  # it is one wait, not one for each of 8 samples


@pytest.mark.processes
@pytest.mark.parametrize("workers", [0, 1])
def test_a_stop_signal_ends_the_wait(server: FaultyServer, workers: int):
    index = index_at(server, PATIENT)
    server.fault = lambda method, path: 503

    def stop(reason: str) -> None:
        raise Stopped(reason)

    with pytest.raises(Stopped, match="HTTP 503"):
        load(index, workers=workers, on_outage=stop)


def test_a_whole_shard_that_is_missing_or_denied_stays_a_named_error(server: FaultyServer):
    index = index_at(server, QUICK)
    for status in (403, 404):
        server.fault = lambda method, path, status=status: status
        [first, _] = load(index)
        assert not first.weight_B.any()
        assert f"HTTP {status}" in first.skipped[0].reason
        assert first.skipped[0].reason.endswith("no sample of that shard can be read")


def test_a_request_that_is_refused_stops_the_run_and_is_not_a_bad_video(server: FaultyServer):
    index = index_at(server, QUICK)
    server.fault = lambda method, path: 400
    with pytest.raises(StorageError, match="HTTP 400; the server refuses such a request") as caught:
        load(index)
    assert not isinstance(caught.value, StorageUnavailable)


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.EMFILE])
@pytest.mark.slow
def test_an_error_of_a_local_disk_is_an_outage(
    synth_shards: Path, monkeypatch: pytest.MonkeyPatch, code: int
):
    index = open_index(synth_shards / "train", outage_s=0.0)
    real, failures = os.pread, [OSError(code, os.strerror(code))]

    def pread(*arguments: int) -> bytes:
        if failures:
            raise failures.pop()
        return real(*arguments)

    monkeypatch.setattr(os, "pread", pread)
    with pytest.raises(StorageUnavailable, match=f"cannot be read from shard-.*: {os.strerror(code)}; fix:"):
        read_video(index, index.sample(0))
    failures.append(OSError(code, os.strerror(code)))
    index = open_index(synth_shards / "train", outage_s=20.0)
    assert all(batch.weight_B.all() for batch in load(index))


def test_a_folder_that_is_not_mounted_is_an_outage_and_a_missing_shard_is_not(shards: Path):
    index = open_index(shards)
    away = shards.rename(shards.with_name("away"))
    for prepare in (lambda: None, shards.mkdir):  # no folder at all, then the empty one of a mount point
        prepare()
        with pytest.raises(StorageUnavailable, match="No such file or directory; fix: check the disk"):
            load(index)
    shards.rmdir()
    away.rename(shards)
    assert all(batch.weight_B.all() for batch in load(index))
    other = open_index(shutil.copytree(shards, shards.with_name("other")))
    other.shard_location(other.sample(0)).path.unlink()
    with pytest.raises(BadVideo, match="No such file"):
        read_video(other, other.sample(0))


@pytest.mark.slow
def test_opening_waits_for_a_storage_that_is_down(server: FaultyServer):
    server.script(503, 503)
    assert len(index_at(server, PATIENT)) > 0
    server.fault = lambda method, path: 503
    with pytest.raises(StorageUnavailable, match=r"cannot read .*dataset.json: HTTP 503"):
        index_at(server, QUICK)


@pytest.mark.processes
def test_a_slow_download_with_progress_is_not_a_hang(server: FaultyServer):
    index = index_at(server, RetryPolicy(idle_s=20.0, total_s=60.0))
    server.fault = lambda method, path: "trickle" if path.endswith(".tar") else None
    batches = load(index, workers=1, timeout_s=3.0, clips=1, last_step=1)  # the body takes 6 s
    assert batches[0].weight_B.all() and batches[0].skipped == ()


@pytest.mark.processes
def test_a_read_that_hangs_is_an_outage_and_quarantines_nothing(shards: Path):
    index = open_index(shards, outage_s=4.0)
    for shard in index.shards:
        (shards / shard.name).unlink()
        os.mkfifo(shards / shard.name)  # a read of it blocks, as on a stale network disk
    reports: list[str] = []
    with pytest.raises(StorageUnavailable, match=r"sample .*: the read of its bytes did nothing for 4 s"):
        load(index, workers=1, timeout_s=3.0, on_outage=reports.append)
