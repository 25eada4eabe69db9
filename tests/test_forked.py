"""Forks of the process with imported libraries behave as new interpreters."""

import subprocess

import pytest

from tests.forked import ForkedPython, run_forked

REPORT = "import os, sys; print(os.getpid(), os.environ['COLOUR'], *sys.argv); sys.exit(7)"


def test_a_fork_has_its_own_id_environment_arguments_and_exit_code() -> None:
    words = ("-c", REPORT, "an argument")
    process = ForkedPython(*words, environment={"COLOUR": "red"}, stdout=subprocess.PIPE)
    output, _ = process.communicate(timeout=60)
    assert (output, process.returncode) == (f"{process.pid} red -c an argument\n", 7)


def test_a_fork_can_be_killed() -> None:
    process = ForkedPython("-c", "input()", environment={}, stdin=subprocess.PIPE)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=0.01)
    assert process.poll() is None
    process.kill()
    assert process.wait(timeout=60) == -9 == process.poll()


def test_a_failed_module_shows_its_errors() -> None:
    with pytest.raises(AssertionError, match=r"exited with 2:\n.*steps: expected"):
        run_forked("-m", "kinemae", "pretrain", "demo", "steps=none")
