"""A process without progress logs its position and exits."""

import signal
import subprocess
import time
from pathlib import Path

import pytest

from kinemae.data_tools.config import load_config
from kinemae.pretrain.config import PretrainConfig
from tests.forked import ForkedPython, run_forked

STUCK, CRASHED = 5, 1

# Enters a step with a limit of argument 3 seconds, and hangs as argument 1 specifies.
HANGING = """
import ctypes, sys, time
from kinemae.data_tools.command import configure_logging
from kinemae.pretrain.runtime import watchdog as module
from kinemae.pretrain.runtime.settings import TimeoutsConfig
from kinemae.pretrain.runtime.watchdog import Watchdog

module._LOCKED_FACTOR = float(sys.argv[2])
configure_logging()
limits = {"step_s": float(sys.argv[3]), "first_step_s": 60.0, "save_s": 60.0}
with Watchdog(TimeoutsConfig(**limits), rank=3, reading=lambda: ["brushing/4"]) as watchdog:
    watchdog.start_phase("waiting for data", limit="step_s", step=7)
    watchdog.rename_phase("computing")
    print("begun", flush=True)
    def hang_here():
        exec(sys.argv[1])
    hang_here()
"""


def hang(how: str, *, factor: float = 60.0, limit_s: float = 1.0) -> subprocess.CompletedProcess[str]:
    return run_forked("-c", HANGING, how, str(factor), str(limit_s), check=False)


@pytest.mark.slow
def test_a_process_that_hangs_in_c_logs_its_position_and_exits_with_5() -> None:
    result = hang("ctypes.CDLL(None).sleep(80)")
    assert result.returncode == STUCK
    assert "rank 3 on " in result.stderr and "is stuck at step 7, computing" in result.stderr
    assert "more than timeouts.step_s=1 seconds" in result.stderr
    assert "loader workers are reading brushing/4" in result.stderr
    assert "in hang_here" in result.stderr and "in _watch" in result.stderr  # all threads' stacks


@pytest.mark.slow
def test_a_process_that_hangs_with_the_gil_held_exits() -> None:
    result = hang("ctypes.PyDLL(None).sleep(80)", factor=1.5)
    assert result.returncode == CRASHED
    assert "in hang_here" in result.stderr


@pytest.mark.slow
def test_a_process_with_progress_continues_and_a_save_has_its_own_limit() -> None:
    steps = "[(time.sleep(0.5), watchdog.start_phase('step', limit='step_s')) for _ in range(6)]\n"
    save = "with watchdog.phase('saving', limit='save_s'): time.sleep(3.0)\n"
    result = hang(steps + save + "time.sleep(0.3)", limit_s=2.5)
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.slow
def test_a_suspended_job_continues() -> None:
    words = ("-c", HANGING, "sys.stdin.readline()", "60", "2.5")
    process = ForkedPython(*words, environment={}, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == "begun\n"
    process.send_signal(signal.SIGSTOP)
    time.sleep(4.0)  # longer than the step's limit
    process.send_signal(signal.SIGCONT)
    process.communicate("go on\n", timeout=60)
    assert process.returncode == 0


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("timeouts.step_s=0", r"timeouts\.step_s must be above 0, got 0"),
        ("timeouts.validate_s=1e10", r"timeouts\.validate_s must be at most 1e\+08, got 1"),
        ("timeouts.start_s=-1", r"timeouts\.start_s must be above 0, got -1"),
        ("timeouts.save_s=0", r"timeouts\.save_s must be above 0"),
        (
            "timeouts.first_step_s=60",
            r"timeouts\.first_step_s must be at least timeouts\.step_s=600, got 60",
        ),
        ("timeouts.straggler_ratio=1", r"timeouts\.straggler_ratio must be above 1, got 1"),
        ("timeouts.lock_wait_s=-1", r"timeouts\.lock_wait_s must be 0 or more, got -1"),
    ],
)
def test_invalid_timeouts_are_refused_by_name(small_run: Path, override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_config(PretrainConfig, small_run, [override])
