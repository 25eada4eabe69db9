"""Transient file system errors: calls are retried; then the start ends and can be repeated."""

import errno
import json
import os
import resource
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kinemae.data_tools.command import CheckpointError, Stuck, exit_code_of
from kinemae.data_tools.exit_codes import EXIT_STUCK, is_restartable
from kinemae.data_tools.storage.retries import is_outage
from kinemae.pretrain.config import PretrainConfig
from kinemae.pretrain.runtime import file_retries
from kinemae.pretrain.runtime.async_writer import WriteResult, combine_failures
from kinemae.pretrain.runtime.checkpoint import RunState
from kinemae.pretrain.runtime.file_retries import FileFailure, retry
from kinemae.pretrain.runtime.processes import Processes
from kinemae.pretrain.runtime.run_folder import open_run_dir, run_lock
from kinemae.pretrain.runtime.settings import TimeoutsConfig
from tests.checkpointing import PlainEngine, alone, checkpoints, save, stored_steps


@contextmanager
def no_descriptors(for_s: float | None = None) -> Iterator[None]:
    """Opening any file fails with EMFILE, as on a busy node."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    end = threading.Timer(for_s or 0.0, resource.setrlimit, (resource.RLIMIT_NOFILE, before))
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, before[1]))
    try:
        if for_s is not None:
            end.start()
        yield
    finally:
        end.cancel()
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_transient_error_is_retried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path, 1, 2)
    monkeypatch.setattr(file_retries, "DELAYS_S", (0.05,) * 200)
    engine = PlainEngine()
    with no_descriptors(for_s=0.2):
        assert checkpoints(tmp_path).load_newest(engine).step == 2
    assert engine.is_at(2)
    assert "Too many open files" in caplog.text and "next attempt in 0.05 s" in caplog.text
    caplog.clear()
    saver = checkpoints(tmp_path, background=False)
    with no_descriptors(for_s=0.2):
        saver.save(engine, RunState(step=3))
        saver.commit()
    assert "writing " in caplog.text
    assert stored_steps(tmp_path) == ["step-00000002", "step-00000003"]


@pytest.mark.parametrize("action", ["read", "write"])
def test_a_lasting_transient_error_ends_the_start_with_code_5(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, action: str
) -> None:
    save(tmp_path, 1, 2)
    monkeypatch.setattr(file_retries, "DELAYS_S", (0.01,))
    saver, engine = checkpoints(tmp_path), PlainEngine()
    with (
        no_descriptors(),
        pytest.raises(Stuck, match=r"rank 0.*Too many open files.*2 attempts in 0.01") as stuck,
    ):
        if action == "read":
            saver.load_newest(engine)
        else:
            saver.save(engine, RunState(step=3))
            saver.commit()
    assert exit_code_of(stuck.value) == EXIT_STUCK and is_restartable(EXIT_STUCK)
    assert checkpoints(tmp_path).load_newest(engine).step == 2  # sweeps up
    assert stored_steps(tmp_path) == ["step-00000001", "step-00000002"]


def test_a_file_that_cannot_be_read_to_its_end_ends_the_start_with_code_5(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1)

    class Late(PlainEngine):
        def load_shards(self, fill, updates):  # type: ignore[no-untyped-def]
            (shard,) = tmp_path.rglob("shard-*")
            os.truncate(shard, 2000)
            super().load_shards(fill, updates)

    monkeypatch.setattr(file_retries, "DELAYS_S", ())
    with pytest.raises(Stuck, match=r"expected rank 0 on .* to read it, got .*shorter than at its opening"):
        checkpoints(tmp_path).load_newest(Late())


def test_a_permanent_error_is_not_retried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_retries, "DELAYS_S", (1000.0,))
    calls = []

    def full() -> None:
        calls.append(1)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OSError, match="No space left"):
        retry(full, "writing")
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("code", "retries_write", "is_outage_of_read"),
    [
        *((code, True, True) for code in (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EMFILE)),
        *((code, False, True) for code in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)),
        *((code, True, False) for code in (errno.EEXIST, errno.ENODEV, errno.ENXIO, errno.ESPIPE)),
        *((code, False, False) for code in (errno.EACCES, errno.EPERM, errno.ENOENT, errno.EISDIR)),
        (None, True, False),
    ],
)
def test_errors_of_run_folders_and_of_data(
    code: int | None, retries_write: bool, is_outage_of_read: bool
) -> None:
    error = OSError("no number") if code is None else OSError(code, os.strerror(code))
    assert file_retries.is_transient(error) == retries_write
    assert is_outage(error) == is_outage_of_read


def test_a_failed_save_is_transient_if_all_failures_are() -> None:
    done = WriteResult("a", None, FileFailure("stale", is_transient=True))
    full = WriteResult("b", None, FileFailure("no space", is_transient=False))
    assert combine_failures([done, done]) == FileFailure("rank 0 on a: stale; rank 1 on a: stale", True)
    assert combine_failures([done, full]) == FileFailure("rank 0 on a: stale; rank 1 on b: no space", False)
    broken = combine_failures([WriteResult("c", None, None)])
    assert broken == FileFailure("rank 0 on c: the writing thread ended early", False)


def test_an_unreadable_checkpoint_folder_is_not_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1)
    monkeypatch.setattr(file_retries, "DELAYS_S", ())
    with no_descriptors(), pytest.raises(Stuck, match=r"reading the folder .* failed on rank 0: .*Too many"):
        checkpoints(tmp_path).load_newest(PlainEngine())
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "checkpoints").touch()
    with pytest.raises(CheckpointError, match=r"cannot use the checkpoints in .*Not a directory"):
        checkpoints(tmp_path / "elsewhere").load_newest(PlainEngine())


def test_a_file_in_place_of_a_folder_is_a_permanent_error(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "step-00000009.dropped").touch()
    with pytest.raises(CheckpointError, match=r"cannot use the checkpoints in .*Not a directory"):
        checkpoints(tmp_path).load_newest(PlainEngine())


@pytest.mark.parametrize("stays", [False, True])
def test_opening_a_run_folder_is_retried_and_then_ends_with_code_5(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_config: Callable[..., PretrainConfig], stays: bool
) -> None:
    monkeypatch.setattr(file_retries, "DELAYS_S", (0.01,) if stays else (0.05,) * 200)
    config, processes, timeouts = small_config(), alone(), TimeoutsConfig()
    run_dir = tmp_path / "run"
    with run_lock(run_dir, processes, timeouts):
        open_run_dir(run_dir, config)
    for action in (lambda: open_run_dir(run_dir, config), lambda: take(run_dir, processes, timeouts)):
        with no_descriptors(for_s=None if stays else 0.2):
            if not stays:
                action()
                continue
            with pytest.raises(Stuck, match=r"writing to .*Too many open files.*fix: check") as stuck:
                action()
            assert exit_code_of(stuck.value) == EXIT_STUCK
    starts = json.loads((run_dir / "environment.json").read_text(encoding="utf-8"))
    assert len(starts) == (1 if stays else 2)


def take(run_dir: Path, processes: Processes, timeouts: TimeoutsConfig) -> None:
    with run_lock(run_dir, processes, timeouts):
        pass
