"""A killed run resumes, locally and remotely, and ends with the bytes of an uninterrupted one."""

import fcntl
import itertools
import json
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from kinemae.data_tools.command import DataError
from kinemae.data_tools.index import open_index
from kinemae.data_tools.sharding.output import Output
from kinemae.data_tools.sharding.windows import SHARDS
from kinemae.data_tools.storage.location import location
from tests.forked import ForkedPython
from tests.seeds import SEED
from tests.sharding import (
    assert_same_output,
    contents,
    encoded,
    moving,
    shard,
    stopped_before_shards,
    video_bytes,
)

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


def start(source: Path, out: str | Path) -> ForkedPython:
    command = ("-m", "data_tools", "shard", str(source), str(out), *ARGUMENTS, "workers=2")
    return ForkedPython(*command, environment={}, stderr=subprocess.DEVNULL)


def kill_when(running: ForkedPython, condition) -> None:  # type: ignore[no-untyped-def]
    while not condition() and running.poll() is None:
        time.sleep(0.001)
    running.send_signal(signal.SIGKILL)
    running.wait()


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.mark.slow
@pytest.mark.processes
def test_a_run_killed_three_times_resumes_to_the_same_bytes(collection: Path, unbroken: Path, tmp_path: Path):
    out, chance = tmp_path / "out", random.Random(SEED)
    stored, finished, later = chance.randint(0, 12), chance.randint(0, 2), chance.random() * 0.05
    log, windows = out / "work" / "transcoded.jsonl", out / "work" / "windows.jsonl"
    kill_when(start(collection, out), lambda: lines(log) > stored)
    kill_when(start(collection, out), lambda: lines(windows) > finished)
    running = start(collection, out)
    while not (out / "work" / "lock").exists() and running.poll() is None:
        time.sleep(0.001)
    time.sleep(later)
    kill_when(running, lambda: True)
    assert shard(collection, out, *ARGUMENTS, workers=2) == 0
    assert contents(out) == contents(unbroken), f"killed after {stored}, {finished}, {later}"


def test_finished_videos_are_not_encoded_again(collection: Path, unbroken: Path, tmp_path: Path):
    out, spool = tmp_path / "out", tmp_path / "out" / "work" / "spool"
    with stopped_before_shards():
        assert shard(collection, out, *ARGUMENTS) == 3
        times = {path: path.stat().st_mtime_ns for path in spool.iterdir()}
        assert len(times) > 8
        assert shard(collection, out, *ARGUMENTS) == 3
        assert {path: path.stat().st_mtime_ns for path in spool.iterdir()} == times
        damaged = sorted(times)[3]
        damaged.write_bytes(b"cut")
        assert shard(collection, out, *ARGUMENTS) == 3
        assert damaged.stat().st_size > 3
    assert shard(collection, out, *ARGUMENTS) == 0
    assert contents(out) == contents(unbroken)


@pytest.mark.parametrize("layout", ["h264", "copy"])
def test_every_stop_between_windows_resumes_to_the_same_bytes(layout: str, collection: Path, tmp_path: Path):
    """Stop before each shard in turn; the scratch folder never holds more than a window and a rest."""
    arguments = [f"layout.name={layout}", "samples_per_shard=2", "validation_fraction=0.25"]
    arguments += ["segment_s=1"] if layout != "copy" else []
    assert shard(collection, tmp_path / "unbroken", *arguments) == 0
    out = tmp_path / "out"
    for each in itertools.count(1):
        with pytest.MonkeyPatch.context() as patch:
            stop_after(SHARDS + each % 2, patch)  # a window has four or five shards
            if shard(collection, out, *arguments) == 0:
                break
        spooled = list((out / "work" / "spool").iterdir())
        assert len(spooled) <= (0 if layout == "copy" else 4 * 2 * (SHARDS + 1))
        assert not (out / "train" / "dataset.json").exists()
    assert each > 2
    assert contents(out) == contents(tmp_path / "unbroken")


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
    assert_same_output(place, unbroken)
    assert len(open_index(f"{bucket}/set/train")) == len(open_index(unbroken / "train"))
    assert not list((tmp_path / "cache" / "kinemae").glob("shard-*"))


def test_missing_shards_of_a_stopped_command_are_written_again(
    collection: Path, unbroken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "out"
    assert shard(collection, out, *ARGUMENTS, "max_bad_fraction=0.01") == 3
    assert len(list((out / "train").glob("*.tar"))) > 1
    (out / "train" / "shard-000001.tar").unlink()
    assert shard(collection, out, *ARGUMENTS) == 0
    assert "windows of finished shards are incomplete and are written again" in capsys.readouterr().err
    assert contents(out) == contents(unbroken)


def stop_after(shards: int, patch: pytest.MonkeyPatch) -> None:
    """Let `shard` fail after this number of shards."""
    write, left = Output.write_shard, shards

    def stop_later(*given: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise DataError("stopped")
        return write(*given)

    patch.setattr(Output, "write_shard", stop_later)


@pytest.mark.parametrize("is_remote", [False, True])
def test_another_machine_continues_with_its_own_work_folder(
    is_remote: bool, collection: Path, request: pytest.FixtureRequest, tmp_path: Path
):
    arguments = ("samples_per_shard=2", "validation_fraction=0", "layout.name=copy")
    assert shard(collection, tmp_path / "unbroken", *arguments) == 0
    place = location(f"{request.getfixturevalue('bucket')}/set" if is_remote else tmp_path / "out")
    stored = []
    for machine in range(3):
        with pytest.MonkeyPatch.context() as patch:
            stop_after(SHARDS if machine < 2 else 100, patch)
            work = f"work_dir={tmp_path / str(machine)}"
            assert shard(collection, place.url, *arguments, work) == (3 if machine < 2 else 0)
        stored += [lines(log) for log in (tmp_path / str(machine)).glob("*/transcoded.jsonl")]
    assert stored[0] - stored[1] == 8  # the first window
    assert_same_output(place, tmp_path / "unbroken")
    assert "work" not in place.list()


def test_samples_of_a_lost_work_folder_are_stored_again(
    collection: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """A window ends with samples that fill no shard: their bytes are only in the work folder."""
    source, out = tmp_path / "videos", tmp_path / "out"
    shutil.copytree(collection, source)
    arguments = ("samples_per_shard=3", "validation_fraction=0", "segment_s=1")
    assert shard(source, tmp_path / "unbroken", *arguments) == 0
    with pytest.MonkeyPatch.context() as patch:
        stop_after(SHARDS, patch)
        assert shard(source, out, *arguments, f"work_dir={tmp_path / 'first'}") == 3
    [log] = (tmp_path / "first").glob("*/windows.jsonl")
    [name, *_] = json.loads(log.read_text())["rest"][0]
    whole = (source / name).read_bytes()
    (source / name).write_bytes(bytes(len(whole)))
    assert shard(source, out, *arguments, f"work_dir={tmp_path / 'second'}") == 3
    assert f"{name}: expected the video that was read before, got another one" in capsys.readouterr().err
    (source / name).write_bytes(whole)
    assert shard(source, out, *arguments, f"work_dir={tmp_path / 'third'}") == 0
    assert contents(out) == contents(tmp_path / "unbroken")


def test_a_copied_video_that_changes_before_it_is_in_a_shard_is_read_again(
    collection: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    source, out = tmp_path / "videos", tmp_path / "out"
    shutil.copytree(collection, source)
    arguments = ("layout.name=copy", "validation_fraction=0")
    with stopped_before_shards():
        assert shard(source, out, *arguments) == 3
    first, other = (source / "run" / name for name in ("1.mp4", "3.mp4"))
    first.write_bytes(other.read_bytes()[:-1].ljust(first.stat().st_size, b"\0")[: first.stat().st_size])
    assert shard(source, out, *arguments) == 0
    index = open_index(out / "train")
    assert "run/broken.mp4" not in index.column("name").tolist()
    found = video_bytes(index)
    for sample in map(index.sample, range(len(index))):
        assert found[sample.key] == (source / sample.name).read_bytes()
