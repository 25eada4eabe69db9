"""A job is checked by a dry run, frozen with its code, and printed before anything runs."""

import argparse
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from kinemae.launch.__main__ import main
from kinemae.launch.cluster import ClusterConfig, read_cluster, start
from kinemae.launch.job import Job, check_job, plan_text, prepare_job, write_job
from kinemae.launch.local import LocalCluster
from kinemae.launch.ssh import SshCluster
from kinemae.launch.supervisor.agent import environment_of, parse, start_ranks
from kinemae.launch.supervisor.leader import Plan
from tests.conftest import REPO, run_module
from tests.launch.test_slurm import EXPECTED, neutral

RUNS = Path("/runs")  # nothing is written there
DEMO = str(REPO / "configs" / "pretrain" / "demo.yaml")


def unchecked(tmp_path: Path, *overrides: str) -> Job:
    words = ["pretrain", DEMO, f"run_dir={tmp_path / 'run'}", *overrides]
    return prepare_job(words, {"NCCL_DEBUG": "WARN"}, dry_run=False)


@pytest.fixture
def same_everywhere(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Job]:
    """Make jobs whose description depends on the machine only through the path of the checkout."""
    python = "/opt/venv/bin/python"
    monkeypatch.setattr(sys, "executable", python)
    monkeypatch.chdir(REPO)
    for name in ("USER", "SSH_AUTH_SOCK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("PATH", "/usr/bin")
    return lambda *overrides: replace(unchecked(RUNS, *overrides), python=python, commit="0123abc")


@pytest.mark.parametrize(
    ("name", "cluster"),
    [
        ("local", read_cluster(LocalCluster, None, ["processes=2"])),
        ("ssh", SshCluster(hosts={"node1": 2, "me@node2": 1}, ssh=["-p", "2222"])),
    ],
)
def test_a_dry_run_prints_all_files_and_commands(
    same_everywhere: Callable[..., Job], name: str, cluster: ClusterConfig
) -> None:
    job = same_everywhere('x=it\'s $(a) "b"\nc')
    text = neutral(plan_text(job, cluster.world(), {}, cluster.commands(job)))
    assert text == (EXPECTED / f"{name}.txt").read_text()


@pytest.mark.slow
def test_a_dry_run_checks_the_job_and_writes_nothing(tmp_path: Path, synth_shards: Path) -> None:
    words = ["pretrain", DEMO, f"data.shards={synth_shards / 'unlabelled'}", f"run_dir={tmp_path / 'run'}"]
    printed = run_module("launch", "local", "processes=2", "--dry-run", "--", *words).stdout
    assert "checked: pretrain accepts the job on 2 processes" in printed
    assert "supervisor/agent.py" in printed and not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_job_for_gpus_is_checked_on_a_login_node(tmp_path: Path, synth_shards: Path) -> None:
    """Where `engine.precision=auto` is fp32."""
    job = ["pretrain", DEMO, f"data.shards={synth_shards / 'unlabelled'}", f"run_dir={tmp_path / 'run'}"]
    checked = check_job([*job, "engine.residual_dtype=bf16"], {}, world_size=2, trains_here=False)
    assert checked["process_counts"]


def test_a_process_that_cannot_start_names_host_and_folder(repo: Path) -> None:
    task = [sys.executable, "-P", str(repo / "launch/supervisor/task.py"), str(os.getpid())]
    for words in (["/nowhere", "true"], ["/", "/no-such-program"]):
        ran = subprocess.run([*task, *words], capture_output=True, text=True)
        assert ran.returncode == 5
        assert f"{socket.gethostname()}: cannot start {words[1]} in {words[0]}: [Errno 2]" in ran.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processes", "shards", "code", "message"),
    [
        (3, None, 2, "batch.global_clips=32 cannot be shared by 3 processes"),
        pytest.param(1, "/nowhere", 3, "no folder of shards at /nowhere", marks=pytest.mark.nightly),
    ],
)
def test_a_refused_job_starts_nothing(
    tmp_path: Path, synth_shards: Path, processes: int, shards: str | None, code: int, message: str
) -> None:
    job = ["pretrain", DEMO, f"data.shards={shards or synth_shards / 'unlabelled'}", f"run_dir={tmp_path}/r"]
    ran = run_module("launch", "local", f"processes={processes}", "--", *job, check=False)
    assert ran.returncode == code and message in ran.stderr
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["local", "processes=0", "--", "pretrain", DEMO], "processes must be at least 1, got 0"),
        (
            ["local", "process=2", "--", "pretrain", DEMO],
            "config key process: .* did you mean processes",
        ),
        (
            ["local", "--processes", "2", "--", "pretrain", DEMO],
            "expected an override without dashes, got '--processes'; fix: write processes=...",
        ),
        (["local"], "expected `pretrain CONFIG .*` or `finetune train CONFIG .*` after --, got 'nothing'"),
        (["local", "--", "train", "x"], "got 'train x'"),
        (["local", "--", "pretrain", "preview", DEMO], "it is not a training"),
        (["local", "--", "finetune", "evaluate", "RUN"], "fix: run kinemae finetune evaluate"),
        (
            ["local", "--", "pretrain", "cost", DEMO],
            "it is not a training; fix: run kinemae pretrain cost",
        ),
        (["local", "--", "python", "-m", "pretrain", DEMO], "got 'python -m'"),
        (
            ["slurm", "nodes=1", "slurm", "--", "pretrain", DEMO],
            "got 'slurm'; fix: write the cluster before the overrides",
        ),
        (["local", "--", "pretrain", "a=b"], "write the config directly after pretrain"),
        (["local", "--", "pretrain", DEMO, "--dry-run"], "move it before --"),
        (["status", "/nowhere", "--", "pretrain"], "expected no further arguments, got 'pretrain'"),
        (["status", "/nowhere"], "/nowhere: expected the folder of a launched run"),
        (["cancel", "/nowhere"], "/nowhere: expected the folder of a launched run"),
        (["logs", "/nowhere"], "/nowhere: expected the folder of a launched run, got no such folder"),
        (["ssh", "none.yaml", "--", "pretrain", DEMO], "no config file at none.yaml"),
    ],
)
def test_wrong_usage_exits_with_2(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    assert re.search(message, capsys.readouterr().err)


def test_the_code_and_the_config_are_frozen_once_for_each_content(tmp_path: Path, repo: Path) -> None:
    job = unchecked(tmp_path)
    write_job(job)
    write_job(job)
    frozen = [path.name for path in job.path.parent.iterdir()]
    assert sorted(frozen) == sorted([Path(job.code).name, Path(job.argv[1]).name, "job.json"])
    assert Path(job.argv[1]).read_text() == Path(DEMO).read_text()
    for name in ("pretrain/__main__.py", "launch/supervisor/task.py", "configs/pretrain/demo.yaml"):
        assert (Path(job.code) / "kinemae" / name).read_bytes() == (repo / name).read_bytes()
    assert not list(Path(job.code).rglob("__pycache__"))
    assert Job.read(job.path) == job


def test_a_run_dir_that_pythonpath_would_split_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="run_dir must contain no ':'"):
        prepare_job(["pretrain", DEMO, f"run_dir={tmp_path}/a:b"], {}, dry_run=False)


def test_the_run_dir_of_an_unchecked_job_is_the_last_one_given(tmp_path: Path) -> None:
    given = prepare_job(["pretrain", DEMO, "run_dir=a", f"run_dir={tmp_path}"], {}, dry_run=False)
    assert given.run_dir == str(tmp_path)
    with pytest.raises(ValueError, match="run_dir must be given after the config"):
        prepare_job(["pretrain", DEMO], {}, dry_run=False)


def test_processes_have_the_variables_of_the_cluster_file_and_import_the_frozen_code(tmp_path: Path) -> None:
    job = replace(unchecked(tmp_path), code="/code", commit="abc", environment={"A": "1"})
    environment = environment_of(job, {"PYTHONPATH": "/mine", "A": "0"})
    assert (environment["A"], environment["PYTHONPATH"]) == ("1", "/code:/mine")
    assert environment["KINEMAE_COMMIT"] == "abc"


def test_the_rank_takes_precedence_over_the_environment_of_the_cluster_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[dict[str, str]] = []
    monkeypatch.setattr(
        "kinemae.launch.supervisor.agent.Rank", lambda rank, command, env, **about: given.append(env)
    )
    monkeypatch.setattr("kinemae.launch.supervisor.agent.NodeRanks", lambda ranks, **options: None)
    job = replace(unchecked(tmp_path), environment={"RANK": "7", "MASTER_ADDR": "10.0.0.1"})
    start_ranks(parse(["job.json", "--node-slots", "1"]), job, Plan(1, [1], "n2:5"), 0)
    assert (given[0]["RANK"], given[0]["MASTER_ADDR"], given[0]["MASTER_PORT"]) == ("0", "n2", "5")


@pytest.mark.parametrize("kind", ["local", "ssh"])
def test_the_shipped_cluster_files_can_be_read(kind: str) -> None:
    schema = {"local": LocalCluster, "ssh": SshCluster}[kind]
    assert read_cluster(schema, REPO / "configs" / "cluster" / f"{kind}.yaml", [])


def test_the_record_of_a_job_holds_no_secret_of_the_starter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "do-not-print")
    write_job(unchecked(tmp_path))
    text = "".join(path.read_text() for path in (tmp_path / "run" / "launch").glob("*.json"))
    assert "do-not-print" not in text and json.loads(text)["environment"] == {"NCCL_DEBUG": "WARN"}


def test_a_missing_program_is_named_before_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kinemae.launch.cluster.prepare_job", lambda *_, **__: unchecked(tmp_path))
    cluster = read_cluster(LocalCluster, None, ["container=[apptainer-7, exec]"])
    with pytest.raises(ValueError, match="expected a program 'apptainer-7' on this machine"):
        start(cluster, argparse.Namespace(job=[], dry_run=False))
    assert not (tmp_path / "run").exists()
