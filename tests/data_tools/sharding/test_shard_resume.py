"""A killed run resumes, locally and remotely, and ends with the bytes of an uninterrupted one."""

import fcntl
import random
import signal
import subprocess
import sys
import time
import zlib
from pathlib import Path

import pytest

from kinemae.data_tools.command import DataError
from kinemae.data_tools.index import open_index
from kinemae.data_tools.sharding.output import Output
from kinemae.data_tools.sharding.tar_writer import ShardSample
from kinemae.data_tools.storage.location import location
from tests.seeds import SEED
from tests.sharding import contents, encoded, moving, shard

# Small shards, so that a kill may also come between two of them.
ARGUMENTS = ("samples_per_shard=3", "validation_fraction=0.25", "segment_s=1")


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("resume") / "videos"
    for number in range(16):
        path = root / ("run" if number % 2 else "walk") / f"{number}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(moving(30 + 3 * number)))
    (root / "run" / "broken.mp4").write_bytes(b"no video")
    return root


@pytest.fixture(scope="module")
def unbroken(collection: Path) -> Path:
    out = collection.parent / "unbroken"
    assert shard(collection, out, *ARGUMENTS) == 0
    return out


def start(repo: Path, source: Path, out: str | Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "data_tools", "shard", str(source), str(out), *ARGUMENTS, "workers=2"]
    return subprocess.Popen(command, cwd=repo, stderr=subprocess.DEVNULL)


def kill_when(running: subprocess.Popen[bytes], condition) -> None:  # type: ignore[no-untyped-def]
    while not condition() and running.poll() is None:
        time.sleep(0.001)
    running.send_signal(signal.SIGKILL)
    running.wait()


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.mark.slow
@pytest.mark.processes
def test_a_run_killed_three_times_resumes_to_the_same_bytes(
    collection: Path, unbroken: Path, tmp_path: Path, repo: Path
):
    out, chance = tmp_path / "out", random.Random(SEED)
    stored, finished, later = chance.randint(0, 12), chance.randint(0, 3), chance.random() * 0.05
    journal, shards = out / "work" / "transcoded.jsonl", out / "work" / "shards.jsonl"
    kill_when(start(repo, collection, out), lambda: lines(journal) > stored)
    kill_when(start(repo, collection, out), lambda: lines(shards) > finished)
    running = start(repo, collection, out)
    while not (out / "work" / "lock").exists() and running.poll() is None:
        time.sleep(0.001)
    time.sleep(later)
    kill_when(running, lambda: True)
    assert shard(collection, out, *ARGUMENTS, workers=2) == 0
    assert contents(out) == contents(unbroken), f"killed after {stored}, {finished}, {later}"


def test_finished_videos_are_not_encoded_again(collection: Path, unbroken: Path, tmp_path: Path):
    out = tmp_path / "out"
    assert shard(collection, out, *ARGUMENTS, "max_bad_fraction=0.01") == 3
    spool = {path: path.stat().st_mtime_ns for path in (out / "work" / "spool").iterdir()}
    assert len(spool) > 16
    assert shard(collection, out, *ARGUMENTS, "max_bad_fraction=0.01") == 3
    assert {path: path.stat().st_mtime_ns for path in (out / "work" / "spool").iterdir()} == spool
    damaged = sorted(spool)[3]
    damaged.write_bytes(b"cut")
    assert shard(collection, out, *ARGUMENTS, "max_bad_fraction=0.01") == 3
    assert damaged.stat().st_size > 3


def test_the_number_of_processes_does_not_change_a_byte(collection: Path, unbroken: Path, tmp_path: Path):
    assert shard(collection, tmp_path / "out", *ARGUMENTS, workers=2) == 0
    assert contents(tmp_path / "out") == contents(unbroken)


def test_work_dir_sets_the_work_folder(collection: Path, unbroken: Path, tmp_path: Path):
    work = tmp_path / "work"
    assert shard(collection, tmp_path / "out", *ARGUMENTS, f"work_dir={work}") == 0
    assert contents(tmp_path / "out") == contents(unbroken)
    assert not list(work.iterdir())


def test_two_runs_at_a_time_are_an_error(
    collection: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "out"
    assert shard(collection, out, "max_bad_fraction=0.01") == 3
    with (out / "work" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert shard(collection, out, "max_bad_fraction=0.01") == 3
    assert f"{out}: another process writes to it" in capsys.readouterr().err


@pytest.mark.slow
def test_shards_on_s3_equal_those_of_a_local_output(
    collection: Path, unbroken: Path, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert shard(collection, f"{bucket}/set", *ARGUMENTS) == 0
    place = location(f"{bucket}/set")
    for name, content in contents(unbroken).items():
        file = place
        for part in name.split("/"):
            file = file / part
        assert file.read() == content
    assert len(open_index(f"{bucket}/set/train")) == len(open_index(unbroken / "train"))
    assert not list((tmp_path / "cache" / "kinemae").glob("shard-*"))


def some_samples(work: Path) -> list[ShardSample]:
    (work / "spool").mkdir(parents=True, exist_ok=True)
    samples = []
    for number in range(2):
        file = work / "spool" / f"k{number}.mp4"
        file.write_bytes(bytes([number]) * 700)
        crc32 = zlib.crc32(file.read_bytes())
        about = {"key": f"k{number}", "description": b"{}", "extension": "mp4", "length": 700, "crc32": crc32}
        samples.append(ShardSample(file=file, **about))  # type: ignore[arg-type]
    return samples


@pytest.mark.parametrize("is_remote", [False, True])
def test_a_finished_shard_is_neither_written_nor_uploaded_again(
    is_remote: bool, request: pytest.FixtureRequest, tmp_path: Path
):
    place = location(f"{request.getfixturevalue('bucket')}/set" if is_remote else tmp_path / "out")
    output = Output(place, str(tmp_path / "work"))
    samples = some_samples(output.work)
    with output.opened():
        first = output.write_shard("train", 0, samples)
        assert (place / "train" / "shard-000000.tar").size() == first.shard.bytes
        assert not list((output.work / "spool").iterdir())
    (output.work / "shards.jsonl").open("a").write('{"split": "tra')  # an incomplete last line
    again = Output(place, str(tmp_path / "work"))
    with again.opened():
        assert again.is_sharded("k0")
        assert again.write_shard("train", 0, samples) == first  # the spool is empty: nothing can be written
    (place / "train" / "shard-000000.tar").remove()
    lost = Output(place, str(tmp_path / "work"))
    with lost.opened():
        assert not lost.is_sharded("k0")
        assert lost.write_shard("train", 0, some_samples(output.work)) == first


def test_a_finished_shard_of_other_samples_is_written_again(tmp_path: Path):
    output = Output(location(tmp_path / "out"), None)
    with output.opened():
        first = output.write_shard("train", 0, some_samples(output.work))
        second = output.write_shard("train", 0, some_samples(output.work)[:1])
        assert (first.shard.samples, second.shard.samples) == (2, 1)
        with pytest.raises(
            DataError, match=r"expected the bytes that were checked, got others; fix: run the command again"
        ):
            output.write_shard("train", 0, _without_files(tmp_path))
        assert not output.is_sharded("k0")


def _without_files(tmp_path: Path) -> list[ShardSample]:
    samples = some_samples(tmp_path / "gone")
    for sample in samples:
        sample.file.unlink()
    return samples
