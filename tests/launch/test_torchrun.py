"""Plain torchrun with two nodes runs a training, and reports the first failure from its error file."""

import subprocess
import sys
from pathlib import Path

import pytest

from kinemae.data_tools.files import read_jsonl
from tests.conftest import REPO, demo_job
from tests.ranks import free_port

pytestmark = [pytest.mark.processes, pytest.mark.slow, pytest.mark.nightly]


def torchrun(node: int, port: int, *job: str) -> "subprocess.Popen[str]":
    words = ["--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d", "--rdzv-id", "run"]
    words += ["--rdzv-endpoint", f"127.0.0.1:{port}", "--rdzv-conf", f"is_host={int(node == 0)}"]
    command = [sys.executable, "-m", "torch.distributed.run", *words, "--local-addr", "127.0.0.1"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen([*command, "-m", "kinemae", *job], cwd=REPO, text=True, **pipes)  # type: ignore[call-overload,no-any-return]


def test_two_nodes_of_torchrun_train_and_report_the_first_failure(tmp_path: Path, synth_shards: Path) -> None:
    port, job = free_port(), [*demo_job(synth_shards, steps=3), f"run_dir={tmp_path / 'run'}"]
    nodes = [torchrun(node, port, *job) for node in range(2)]
    outputs = [node.communicate(timeout=300)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], outputs
    assert [line["step"] for line in read_jsonl(tmp_path / "run" / "metrics.jsonl")] == [0, 1, 2]
    nodes = [torchrun(node, port, *job, "seed=999") for node in range(2)]
    outputs = [node.communicate(timeout=300)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [1, 1]  # torchrun's code for every failure
    assert "holds a run of another config" in outputs[0] + outputs[1]
    assert "exitcode  : 2" in outputs[0] + outputs[1]
