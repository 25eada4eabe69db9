"""Real trainings on two hosts behind ssh: the losses of one process, also where a process was killed."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from launch.record import newest_checkpoint, read_record
from tests.conftest import REPO, run_module
from tests.launch.hosts import Network
from tests.launch.rooms import wait_for
from tests.pretrain.runtime.conftest import SMALL_RUN

pytestmark = pytest.mark.processes

STEPS = 150  # enough that the kill lands among them on a busy machine


def losses(run_dir: Path) -> list[float]:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(STEPS))
    return [line["loss"] for line in lines]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, synth_shards: Path) -> Path:
    path = tmp_path_factory.mktemp("job") / "small.yaml"
    text = SMALL_RUN.replace("data: {", f"data: {{shards: {synth_shards / 'unlabelled'}, ")
    path.write_text(text + "health: {every_steps: 0}\n")
    return path


@pytest.fixture(scope="module")
def alone(config: Path) -> list[float]:
    """The losses of one process."""
    run_dir = config.parent / "alone"
    run_module("pretrain", str(config), f"run_dir={run_dir}", f"steps={STEPS}")
    return losses(run_dir)


def launch(network: Network, config: Path, run_dir: Path, *words: str) -> "subprocess.Popen[str]":
    job = ["pretrain", str(config), f"run_dir={run_dir}", f"steps={STEPS}", "save_every_steps=5"]
    return subprocess.Popen(
        [sys.executable, "-m", "launch", "ssh", *network.overrides(), *words, "--", *job],
        cwd=REPO,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_two_hosts_equal_one_process_although_one_is_killed(
    config: Path, network: Network, alone: list[float]
) -> None:
    run_dir = config.parent / "agents"
    launcher = launch(network, config, run_dir, "grace_s=5")
    wait_for("checkpoint", lambda: newest_checkpoint(run_dir) or launcher.poll() is not None, 120)
    ranks = read_record(run_dir)["agents"][network.hosts[1].name]["ranks"]
    os.kill(ranks["1"], signal.SIGKILL)
    said = launcher.communicate(timeout=300)[0]
    assert launcher.returncode == 0, said
    assert f"rank 1 on {network.hosts[1].name} failed: killed by signal 9" in said
    assert read_record(run_dir)["attempt"] == 2
    assert losses(run_dir) == pytest.approx(alone, rel=1e-5)


def test_deepspeeds_launcher_gives_the_same_losses(
    config: Path, network: Network, alone: list[float]
) -> None:
    if shutil.which("pdsh") is None:
        pytest.skip("no pdsh on this machine")
    run_dir = config.parent / "deepspeed"
    launcher = launch(network, config, run_dir, "through=deepspeed", "max_restarts=0")
    said = launcher.communicate(timeout=300)[0]
    assert launcher.returncode == 0, said
    assert losses(run_dir) == pytest.approx(alone, rel=1e-5)
    assert "loss" in (run_dir / "logs" / "all-ranks.log").read_text()
