"""Real trainings on two hosts behind ssh: losses equal those of one process, also after a kill."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from kinemae.launch.record import read_record, saved_steps
from tests.conftest import REPO
from tests.launch.conftest import losses, small_job
from tests.launch.fake_program import wait_for
from tests.launch.hosts import Network

pytestmark = [pytest.mark.processes, pytest.mark.cluster]


def launch(network: Network, shards: Path, run_dir: Path, *words: str) -> "subprocess.Popen[str]":
    job = [*small_job(shards), f"run_dir={run_dir}", "save_every_steps=5"]
    command = ["launch", "ssh", *network.overrides(), *words, "--", *job]
    return subprocess.Popen(
        [sys.executable, "-m", "kinemae", *command],
        cwd=REPO,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.nightly
def test_two_hosts_equal_one_process_after_a_kill(
    tmp_path: Path, synth_shards: Path, network: Network, alone: list[float]
) -> None:
    run_dir = tmp_path / "agents"
    launcher = launch(network, synth_shards, run_dir, "grace_s=5")
    wait_for("checkpoint", lambda: saved_steps(run_dir) or launcher.poll() is not None, 120)
    log = (run_dir / "logs" / "rank-00001.log").read_text()
    os.kill(int(re.findall(r"rank 1 on \S+ process (\d+)", log.replace(",", ""))[-1]), signal.SIGKILL)
    output = launcher.communicate(timeout=300)[0]
    assert launcher.returncode == 0, output
    assert f"rank 1 on {network.hosts[1].name} failed: killed by signal 9" in output
    assert read_record(run_dir)["attempt"] == 2
    assert losses(run_dir) == pytest.approx(alone, rel=1e-5)
