"""Benchmarks report a missing package in one line."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.benchmarks.peers import why_missing


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "peer_of_a_test is not installed: its rows are left out; fix: pip install peer"),
        ("import no_such_module", "peer_of_a_test cannot be imported: no module named no_such_module"),
        ("raise RuntimeError('no libavutil\\nand more')", "peer_of_a_test cannot be imported: no libavutil:"),
        ("raise OSError", "peer_of_a_test cannot be imported: OSError"),
    ],
)
def test_a_package_that_cannot_be_imported_is_reported_in_a_line(
    content: str | None, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if content is not None:
        (tmp_path / "peer_of_a_test.py").write_text(content)
    monkeypatch.syspath_prepend(tmp_path)
    line = why_missing("peer_of_a_test", "peer")
    assert line is not None and line.startswith(reason) and "\n" not in line


def test_an_installed_package_is_not_missing() -> None:
    assert why_missing("json.decoder", "nothing") is None


@pytest.mark.slow
@pytest.mark.parametrize(("script", "peer"), [("loader", "torchcodec"), ("step", "transformers")])
def test_a_benchmark_starts_without_the_other_package(
    script: str, peer: str, repo: Path, tmp_path: Path
) -> None:
    (tmp_path / f"{peer}.py").write_text("raise RuntimeError('its libraries are missing')")
    command = [sys.executable, str(repo / "tests" / "benchmarks" / f"{script}.py"), "--help"]
    path = os.pathsep.join([str(tmp_path), str(repo)])
    ran = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (0, "")
