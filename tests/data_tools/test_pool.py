"""Work on several processes gives the results of one, in order, and survives a crash."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from data_tools.pool import map_as_done, map_in_order


def square(number: int) -> int:
    return number * number


def crash_on_three(number: int) -> int:
    if number == 3:
        os.kill(os.getpid(), signal.SIGSEGV)
    return number


def crashed(number: int) -> int:
    return -number


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_the_order_of_the_jobs(workers: int):
    jobs = list(range(40))
    assert list(map_in_order(square, jobs, workers=workers)) == [number * number for number in jobs]


def sleep_for_long_jobs(number: int) -> int:
    time.sleep(1.0 if number == 0 else 0.0)
    return number


@pytest.mark.processes
def test_a_long_job_holds_nothing_up():
    done = list(map_as_done(sleep_for_long_jobs, range(20), workers=2))
    assert sorted(done) == [(number, number) for number in range(20)]
    assert done[-1] == (0, 0)


def test_no_jobs_start_no_processes():
    assert list(map_in_order(square, [], workers=0)) == []


@pytest.mark.processes
def test_a_job_that_kills_its_process_is_found_and_the_others_are_done():
    assert list(map_in_order(crash_on_three, range(6), workers=2, on_crash=crashed)) == [0, 1, 2, -3, 4, 5]


@pytest.mark.processes
def test_processes_end_with_a_killed_parent(tmp_path: Path):
    script = tmp_path / "parent.py"
    script.write_text(
        textwrap.dedent(
            """
            import os, pathlib, sys, time
            from data_tools.pool import map_in_order

            def work(number):
                pathlib.Path(sys.argv[1], str(os.getpid())).touch()
                time.sleep(0.1)

            if __name__ == "__main__":
                for _ in map_in_order(work, range(10_000), workers=1 + 1):
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
