"""A run folder has one writer; the error of a second one names the first."""

import os
import platform
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from kinemae.data_tools.command import DataError, Stuck, exit_code_of
from kinemae.data_tools.exit_codes import is_restartable
from kinemae.pretrain.runtime.processes import Processes, find_processes
from kinemae.pretrain.runtime.run_folder import LOCK_FILE, run_lock
from kinemae.pretrain.runtime.settings import TimeoutsConfig


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> Processes:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    return find_processes("cpu")


@contextmanager
def lock(run_dir: Path, processes: Processes, wait_s: float = 0.0) -> Iterator[None]:
    with run_lock(run_dir, processes, TimeoutsConfig(lock_wait_s=wait_s)):
        yield


def test_a_second_writer_is_refused_and_the_error_names_the_first(tmp_path: Path, alone: Processes) -> None:
    with lock(tmp_path / "run", alone):
        holder = f"process {os.getpid()} on {platform.node()}"
        with (
            pytest.raises(ValueError, match=f"is in use by {holder}.*choose another run_dir"),
            lock(tmp_path / "run", alone),
        ):
            pass
    with lock(tmp_path / "run", alone):
        pass


def test_a_supervisor_repeats_a_start_that_meets_a_process_of_the_last_one(
    tmp_path: Path, alone: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    with (
        lock(tmp_path / "run", alone),
        pytest.raises(Stuck, match="is in use by process") as caught,
        lock(tmp_path / "run", alone),
    ):
        pass
    assert is_restartable(exit_code_of(caught.value))


def test_a_restarted_run_waits_for_the_previous_process(tmp_path: Path, alone: Processes) -> None:
    is_held, may_end = threading.Event(), threading.Event()

    def predecessor() -> None:
        with lock(tmp_path, alone):
            is_held.set()
            may_end.wait(60)

    thread = threading.Thread(target=predecessor)
    thread.start()
    is_held.wait(60)
    threading.Timer(0.3, may_end.set).start()
    with lock(tmp_path, alone, wait_s=60.0):
        thread.join(60)
    assert may_end.is_set()


def test_only_the_first_process_locks(tmp_path: Path, alone: Processes) -> None:
    with lock(tmp_path, alone), lock(tmp_path, replace(alone, rank=1, world=2)):
        assert (tmp_path / LOCK_FILE).exists()


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, alone: Processes) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(DataError, match=f"cannot write to {tmp_path / 'file' / 'run'}"),
        lock(tmp_path / "file" / "run", alone),
    ):
        pass
