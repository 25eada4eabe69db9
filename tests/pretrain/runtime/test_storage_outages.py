"""A run during a storage outage: it saves its steps, ends with a restartable code, and continues."""

import errno
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from kinemae.data_tools.command import Stopped, exit_code_of
from kinemae.data_tools.exit_codes import EXIT_STOPPED, EXIT_STUCK, is_restartable
from kinemae.data_tools.storage.location import StorageUnavailable
from kinemae.pretrain.config import PretrainConfig
from kinemae.pretrain.runtime.metrics import read_metrics
from kinemae.pretrain.training import make_plan, run_pretraining
from tests.forked import run_forked

RARE = ("save_every_steps=6", "log.every_steps=10")  # nothing is reported or saved before the outage
CLIPS_A_STEP = 4


def losses(config: PretrainConfig) -> list[float]:
    return [line["loss"] for line in read_metrics(Path(config.run_dir) / "metrics.jsonl")]


def steps_saved(config: PretrainConfig) -> list[int]:
    return sorted(
        int(path.name.rpartition("-")[2]) for path in Path(config.run_dir).glob("checkpoints/step-*")
    )


def fail_after(monkeypatch: pytest.MonkeyPatch, reads: int, also: Callable[[], None] = int) -> None:
    """Make all reads of a local disk fail after some reads."""
    real, left = os.pread, [reads]

    def pread(descriptor: int, length: int, offset: int) -> bytes:
        if left[0] == 0:
            also()
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        left[0] -= 1
        return real(descriptor, length, offset)

    monkeypatch.setattr(os, "pread", pread)


def test_a_run_saves_before_it_stops_and_continues_with_equal_losses(
    small_config: Callable[..., PretrainConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = small_config(f"run_dir={tmp_path / 'undisturbed'}")
    run_pretraining(make_plan(undisturbed))
    config = small_config(*RARE, "data.outage_s=0")
    with monkeypatch.context() as patch:
        plan = make_plan(config)
        fail_after(patch, reads=3 * CLIPS_A_STEP + 1)
        with pytest.raises(StorageUnavailable, match="Input/output error; fix: check the disk") as caught:
            run_pretraining(plan)
    assert exit_code_of(caught.value) == EXIT_STUCK and is_restartable(EXIT_STUCK)
    assert steps_saved(config) == [3]
    run_pretraining(make_plan(config))
    assert losses(config) == losses(undisturbed)
    assert all(line["skipped_clips"] == 0 for line in read_metrics(Path(config.run_dir) / "metrics.jsonl"))


def test_a_stop_signal_ends_the_wait_with_a_checkpoint(
    small_config: Callable[..., PretrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_config(*RARE, "data.outage_s=600", "data.read_ahead=0")
    plan = make_plan(config)
    fail_after(monkeypatch, reads=2 * CLIPS_A_STEP, also=lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Stopped, match=r"stopped while a storage is down, .*Input/output error") as caught:
        run_pretraining(plan)
    assert exit_code_of(caught.value) == EXIT_STOPPED
    assert steps_saved(config) == [2]


@pytest.mark.parametrize("is_stopped", [False, True])
def test_a_checkpoint_that_was_begun_before_an_outage_is_completed(
    small_config: Callable[..., PretrainConfig], monkeypatch: pytest.MonkeyPatch, is_stopped: bool
) -> None:
    config = small_config(
        "save_every_steps=3", "log.every_steps=10", f"data.outage_s={600 * is_stopped}", "data.read_ahead=0"
    )
    plan = make_plan(config)
    stop: Callable[[], None] = lambda: os.kill(os.getpid(), signal.SIGTERM)  # noqa: E731
    fail_after(monkeypatch, reads=3 * CLIPS_A_STEP, also=stop if is_stopped else int)
    with pytest.raises(Stopped if is_stopped else StorageUnavailable):
        run_pretraining(plan)
    assert steps_saved(config) == [3]


@pytest.mark.slow
def test_a_wait_for_storage_does_not_count_for_the_step_timeout() -> None:
    script = """
import time
from kinemae.pretrain.runtime.abort import StopSignals, StorageWait
from kinemae.pretrain.runtime.settings import TimeoutsConfig
from kinemae.pretrain.runtime.watchdog import Watchdog

limits = {"step_s": 3.0, "first_step_s": 60.0, "save_s": 60.0}
with Watchdog(TimeoutsConfig(**limits), rank=0) as watchdog:
    watchdog.start_phase("waiting for data", limit="step_s", step=7)
    wait = StorageWait(watchdog, StopSignals())
    for _ in range(14):
        wait("the store is down")
        time.sleep(0.5)
    wait("")
"""
    run_forked("-c", script)


def test_outage_s_is_validated(small_config: Callable[..., PretrainConfig]) -> None:
    assert small_config().data.outage_s == 300
    with pytest.raises(ValueError, match=r"data.outage_s must be 0 or more, got -1.0"):
        small_config("data.outage_s=-1")
