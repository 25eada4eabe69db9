"""Fixtures of tests of changes of data sets."""

from collections.abc import Callable

import pytest

from kinemae.data_tools.__main__ import PROGRAM
from kinemae.data_tools.command import run_program

Run = Callable[..., str]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `kinemae data`; return its log."""

    def run(*words: object, code: int = 0) -> str:
        assert run_program(PROGRAM, [str(word) for word in words]) == code, capsys.readouterr().err
        return capsys.readouterr().err

    return run
