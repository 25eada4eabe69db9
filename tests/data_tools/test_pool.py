"""Process pool: same results as one process, in order; crashes and timeouts cost one job."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest

from kinemae.data_tools import heartbeat
from kinemae.data_tools.command import Stuck
from kinemae.data_tools.pool import imap, imap_unordered


def square(number: int) -> int:
    return number * number


def crash_on_three(number: int) -> int:
    if number == 3:
        os.kill(os.getpid(), signal.SIGSEGV)
    return number


def failed(number: int, reason: str) -> int:
    return -number


def failed_why(number: int, reason: str) -> str:
    return f"{number}: {reason}"


def count_and_crash(job: tuple[Path, int]) -> int:
    folder, number = job
    Path(folder, f"{number}-{time.monotonic_ns()}").touch()
    if number == 5:
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.4)
    return number


def failed_one(job: tuple[Path, int], reason: str) -> str:
    return reason


def crash_once(job: tuple[Path, int]) -> int:
    """Dies once, as by the kernel's out-of-memory killer."""
    folder, number = job
    if number == 2 and not (folder / "died").exists():
        (folder / "died").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def block_on_pipe(path: Path) -> int:
    if path.is_fifo():
        path.read_bytes()
    return 1


def spin(number: int) -> int:
    while number == 1:
        pass
    return number


def compute_for_a_while(number: int) -> int:
    """Longer than the deadline, without a heartbeat."""
    end_s = time.process_time() + 2.0
    while time.process_time() < end_s:
        pass
    return number


def beat_for_a_while(number: int) -> int:
    for _ in range(30):
        time.sleep(0.1)
        heartbeat.progress()
    return number


def fail(number: int) -> int:
    raise ValueError(f"number {number} is wrong")


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_the_order_of_the_jobs(workers: int):
    jobs = list(range(40))
    assert list(imap(square, jobs, workers=workers)) == [number * number for number in jobs]


def sleep_for_long_jobs(number: int) -> int:
    time.sleep(1.0 if number == 0 else 0.0)
    return number


@pytest.mark.processes
def test_a_long_job_does_not_delay_others():
    done = list(imap_unordered(sleep_for_long_jobs, range(20), workers=2))
    assert sorted(done) == [(number, number) for number in range(20)]
    assert done[-1] == (0, 0)


def test_no_jobs_start_no_processes():
    assert list(imap(square, [], workers=0)) == []


@pytest.mark.processes
def test_a_job_that_kills_its_process_fails_alone():
    assert list(imap(crash_on_three, range(6), workers=2, on_failure=failed)) == [0, 1, 2, -3, 4, 5]


@pytest.mark.processes
def test_only_a_job_that_killed_its_process_is_repeated_once(tmp_path: Path):
    jobs = [(tmp_path, number) for number in range(8)]
    results = dict(imap_unordered(count_and_crash, jobs, workers=2, on_failure=failed_one))
    assert results == {number: number for number in range(8)} | {5: "the decoder crashed on it"}
    calls = Counter(int(path.name.partition("-")[0]) for path in tmp_path.iterdir())
    assert calls == {number: 2 if number == 5 else 1 for number in range(8)}


@pytest.mark.processes
def test_a_job_whose_process_was_killed_once_succeeds_alone(tmp_path: Path):
    jobs = [(tmp_path, number) for number in range(4)]
    assert list(imap(crash_once, jobs, workers=2, on_failure=failed_one)) == [0, 1, 2, 3]


@pytest.mark.processes
def test_a_crash_without_on_failure_is_raised():
    with pytest.raises(BrokenProcessPool, match=r"a worker process died \(exit code -11\)"):
        list(imap(crash_on_three, range(6), workers=2))


@pytest.mark.processes
def test_an_error_of_a_job_is_raised_with_its_traceback():
    with pytest.raises(ValueError, match=r"number [01] is wrong") as caught:
        list(imap(fail, range(6), workers=2))
    assert "in fail" in str(caught.value.__cause__)


@pytest.mark.processes
@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.nightly), 2])
def test_a_blocked_input_times_out_and_the_others_are_done(tmp_path: Path, workers: int):
    paths = [tmp_path / f"{number}" for number in range(5)]
    for path in paths:
        path.touch()
    paths[1].unlink()
    os.mkfifo(paths[1])  # without a writer, so a read blocks
    results = list(imap(block_on_pipe, paths, workers=workers, on_failure=failed_one, timeout_s=1.0))
    assert results == [1, "timed out: no sign of progress for timeout_s=1 seconds", 1, 1, 1]
    with pytest.raises(Stuck, match=r"an input timed out: .*; fix: run the same command again"):
        list(imap(block_on_pipe, paths, workers=workers, timeout_s=1.0))


@pytest.mark.processes
def test_an_endless_loop_times_out_later_than_a_blocked_read():
    found = dict(imap_unordered(spin, range(3), workers=2, on_failure=failed_why, timeout_s=0.3))
    assert found == {0: 0, 1: "1: timed out: no sign of progress for timeout_s=0.3 seconds", 2: 2}


@pytest.mark.processes
@pytest.mark.parametrize("work", [compute_for_a_while, beat_for_a_while])
@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.nightly)])
def test_work_that_makes_progress_does_not_time_out(work: Callable[[int], int], workers: int):
    results = list(imap(work, [7], workers=workers, on_failure=failed, timeout_s=1.5))
    assert results == [7]


@pytest.mark.processes
def test_many_inputs_in_a_row_that_time_out_are_an_outage(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(Stuck, match=r"11 inputs in a row timed out: .*: the storage does not answer"):
        list(
            imap_unordered(
                block_on_pipe, [tmp_path / "pipe"] * 20, workers=12, on_failure=failed_one, timeout_s=0.5
            )
        )


BLOCKED = """
import pathlib, sys, time
from kinemae.data_tools.command import Command, Program, run_program
from kinemae.data_tools.pool import imap

def work(number):
    pathlib.Path(sys.argv[1], "seen", str(__import__("os").getpid())).touch()
    pathlib.Path(sys.argv[1], "pipe").read_bytes()

def run(arguments):
    list(imap(work, range(10), workers=int(arguments.workers)))

if __name__ == "__main__":
    command = Command(name="", help="", example="", run=run, positionals=[("folder", ""), ("workers", "")])
    sys.exit(run_program(Program(name="blocked", description="", commands=[command])))
"""


@pytest.mark.processes
@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.nightly), 3])
def test_ctrl_c_ends_a_command_whose_inputs_are_blocked(tmp_path: Path, workers: int):
    (tmp_path / "blocked.py").write_text(BLOCKED)
    (tmp_path / "seen").mkdir()
    os.mkfifo(tmp_path / "pipe")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    command = [sys.executable, str(tmp_path / "blocked.py"), str(tmp_path), str(workers)]
    parent = subprocess.Popen(command, env=environment, start_new_session=True)
    _wait_until(lambda: len(list((tmp_path / "seen").iterdir())) == workers)
    os.killpg(parent.pid, signal.SIGINT)  # as a terminal does: to the whole group
    assert parent.wait(30) == 130
    _wait_until(lambda: not any(Path("/proc", path.name).exists() for path in (tmp_path / "seen").iterdir()))


@pytest.mark.processes
def test_workers_end_with_a_killed_parent(tmp_path: Path):
    script = tmp_path / "parent.py"
    script.write_text(
        textwrap.dedent(
            """
            import os, pathlib, sys, time
            from kinemae.data_tools.pool import imap

            def work(number):
                pathlib.Path(sys.argv[1], str(os.getpid())).touch()
                time.sleep(0.1)

            if __name__ == "__main__":
                for _ in imap(work, range(10_000), workers=1 + 1):
                    pass
            """
        )
    )
    seen = tmp_path / "seen"
    seen.mkdir()
    repo = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": str(repo)}
    parent = subprocess.Popen([sys.executable, str(script), str(seen)], env=environment)
    _wait_until(lambda: any(seen.iterdir()))
    parent.kill()
    parent.wait()
    _wait_until(lambda: not any(Path("/proc", path.name).exists() for path in seen.iterdir()))


def _wait_until(condition) -> None:  # type: ignore[no-untyped-def]
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)
