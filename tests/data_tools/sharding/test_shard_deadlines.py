"""Deadlines of `shard`: inputs that block are rejected, and Ctrl-C ends the command."""

import errno
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kinemae.data_tools.__main__ import PROGRAM
from kinemae.data_tools.command import run_program
from kinemae.data_tools.exit_codes import EXIT_DATA, EXIT_INTERRUPTED, EXIT_STUCK
from kinemae.data_tools.index import open_index
from kinemae.data_tools.sharding import transcode as transcode_module
from tests.sharding import encoded, moving, shard

TIMED_OUT = "timed out: no sign of progress for timeout_s=2 seconds"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "videos"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.mp4").write_bytes(encoded(moving(6 + number)))
    return folder


@contextmanager
def blocked(path: Path) -> Iterator[None]:
    """Block other processes that open a file, as a stale network disk does: by a lease, for up to 45 s."""
    before = signal.signal(signal.SIGIO, signal.SIG_IGN)
    holder = os.open(path, os.O_RDWR)
    try:
        fcntl.fcntl(holder, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    except OSError as error:
        pytest.skip(f"no leases here: {error}")
    try:
        yield
    finally:
        os.close(holder)
        signal.signal(signal.SIGIO, before)


def rejected(out: Path) -> dict[str, str]:
    lines = (out / "rejected.jsonl").read_text().splitlines()
    return {line["path"]: line["reason"] for line in map(json.loads, lines)}


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.processes)])
@pytest.mark.parametrize("layout", ["copy", "h264"])
def test_a_named_pipe_is_rejected_without_being_opened(
    source: Path, tmp_path: Path, layout: str, workers: int
):
    os.mkfifo(source / "x.mp4")
    os.symlink("/dev/zero", source / "y.mp4")
    command = (source, tmp_path / "out", f"layout.name={layout}", "validation_fraction=0")
    assert shard(*command, workers=workers) == 0
    assert rejected(tmp_path / "out") == {
        "x.mp4": "cannot read it: expected a regular file, got a named pipe",
        "y.mp4": "cannot read it: expected a regular file, got a device",
    }
    assert len(open_index(tmp_path / "out" / "train")) == 3


@pytest.mark.processes
def test_a_blocked_video_is_rejected_and_tried_again_by_the_next_run(source: Path, tmp_path: Path):
    command = (source, tmp_path / "out", "validation_fraction=0", "max_bad_fraction=0")
    with blocked(source / "1.mp4"):
        assert shard(*command, "timeout_s=2", workers=2) == EXIT_DATA
    assert rejected(tmp_path / "out") == {"1.mp4": TIMED_OUT}
    assert shard(*command, workers=2) == 0  # timeout_s does not change the data set
    assert rejected(tmp_path / "out") == {}
    assert len(open_index(tmp_path / "out" / "train")) == 3


@pytest.mark.processes
def test_ctrl_c_ends_sharding_while_an_input_blocks(repo: Path, source: Path, tmp_path: Path):
    with blocked(source / "1.mp4"):
        command = [
            sys.executable,
            "-m",
            "data_tools",
            "shard",
            str(source),
            str(tmp_path / "out"),
            "workers=2",
        ]
        process = subprocess.Popen(
            command, cwd=repo, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        journal = tmp_path / "out" / "work" / "transcoded.jsonl"
        assert process.stderr is not None
        while not journal.is_file() or journal.read_text().count("\n") < 2:
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(20) == EXIT_INTERRUPTED
        assert process.stderr.read().endswith("interrupted\n")


def test_a_disk_failure_does_not_reject_the_video(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(transcode_module, "OUTAGE_S", 0.0)
    os.symlink("/proc/self/mem", source / "x.mp4")  # a regular file whose first byte gives EIO
    command = (source, tmp_path / "out", "validation_fraction=0", "layout.name=copy")
    assert shard(*command) == EXIT_STUCK
    assert f"cannot read {source / 'x.mp4'}: Input/output error; fix: check" in capsys.readouterr().err
    (source / "x.mp4").unlink()
    shutil.copy(source / "0.mp4", source / "x.mp4")
    shutil.rmtree(tmp_path / "out")
    assert shard(*command) == 0
    assert rejected(tmp_path / "out") == {}


def test_a_deadline_must_be_above_0(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert shard(source, tmp_path / "out", "timeout_s=0") == 2
    assert "timeout_s must be above 0, got 0.0" in capsys.readouterr().err
    for command in ("index", "verify"):
        assert run_program(PROGRAM, [command, str(tmp_path), "timeout_s=0"]) == 2
        assert "timeout_s must be above 0, got 0.0" in capsys.readouterr().err


def test_a_named_pipe_among_shards_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    os.mkfifo(tmp_path / "x.tar")
    assert run_program(PROGRAM, ["index", str(tmp_path), "workers=1"]) == EXIT_DATA
    assert "expected a regular file, got a named pipe" in capsys.readouterr().err


def test_a_file_system_without_locks_gives_a_warning(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def no_locks(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    assert shard(source, tmp_path / "out", "validation_fraction=0", "layout.name=copy") == 0
    warning = "is on a file system without locks (flock): run one command at a time for"
    assert warning in capsys.readouterr().err
