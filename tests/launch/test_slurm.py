"""The text of the batch script for Slurm, and invalid values in its cluster file."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from kinemae.launch.__main__ import main
from kinemae.launch.cluster import read_cluster
from kinemae.launch.doctor.nodes import KINDS
from kinemae.launch.doctor.probe import slurm_address
from kinemae.launch.job import Job, plan_text, prepare_job
from kinemae.launch.record import Record, lock_run
from kinemae.launch.slurm import batch
from kinemae.launch.slurm.cluster import SETTINGS, SlurmCluster
from kinemae.launch.slurm.queue import cancel_job, requeue_job
from kinemae.launch.status import status_of
from kinemae.launch.supervisor.policy import STOPPED
from tests.conftest import REPO
from tests.launch.fake_program import make_job, wait_for

SHIPPED = REPO / "configs" / "cluster" / "slurm.yaml"
EXPECTED = Path(__file__).parent / "expected"
HOSTILE = "a b'c\"d $(touch pwned) `touch pwned` ${HOME} %j #x ä; touch pwned"


def job_in(run_dir: Path, *overrides: str) -> Job:
    words = ["pretrain", str(REPO / "configs/pretrain/demo.yaml"), f"run_dir={run_dir}", *overrides]
    return replace(prepare_job(words, {"NCCL_DEBUG": "WARN"}, dry_run=False), commit=None)


def neutral(text: str) -> str:
    """Replace the path of the checkout and the digests of its content."""
    text = text.replace(json.dumps(str(REPO))[1:-1], "REPO").replace(str(REPO), "REPO")
    return re.sub(r"(code|config)-[0-9a-f]{12}", r"\1-DIGEST", text)


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("slurm", []),
        (
            "slurm_pyxis",
            [
                "requeue=false",
                "gpu_type=a100",
                "srun=[--container-image=/i.sqsh, '--container-mounts=/:/']",
                "python=python3",
            ],
        ),
    ],
)
def test_a_dry_run_prints_all_files_and_commands(
    name: str, overrides: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(REPO)
    monkeypatch.setattr(sys, "executable", "/opt/venv/bin/python")
    job = replace(job_in(Path("/runs/run"), 'x=it\'s $(a) "b"\nc'), python="/opt/venv/bin/python")
    cluster = read_cluster(SlurmCluster, SHIPPED, overrides)
    agents = {"the first node": cluster.agents(job, "A:1", "7")}
    text = neutral(plan_text(job, cluster.world(), cluster.files(job), agents))
    assert text == (EXPECTED / f"{name}.txt").read_text(encoding="utf-8")


def test_bash_reads_every_hostile_value_unchanged(tmp_path: Path) -> None:
    job = job_in(tmp_path / HOSTILE)
    cluster = SlurmCluster(
        name=HOSTILE, python=HOSTILE, extra=[f"--comment={HOSTILE}"], environment={"A": HOSTILE}
    )
    script = next(iter(cluster.files(replace(job, python=HOSTILE)).values()))
    assert subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True).stderr == ""
    command = script.partition("\nexec ")[2]
    read = subprocess.run(
        ["bash"], input=f'printf "%s\\0" {command}', text=True, capture_output=True, cwd=tmp_path
    )
    assert read.stdout.split("\0")[1:-1] == ["-P", job.script("slurm/batch.py"), str(job.path)]
    settings = json.loads(cluster.files(job)[job.path.with_name(SETTINGS)])
    assert SlurmCluster(**settings) == cluster
    assert HOSTILE in cluster.agents(replace(job, python=HOSTILE), "A:1", "7")
    assert not list(tmp_path.rglob("pwned"))


def test_a_container_is_the_command_prefix_of_each_agent(tmp_path: Path) -> None:
    words = ["container=[apptainer, exec, --nv, k.sif]", "srun=[--mpi=none]", "python=python3"]
    command = read_cluster(SlurmCluster, SHIPPED, words).agents(job_in(tmp_path), "A:1", "7")
    place = command.index("--mpi=none")
    assert command[place + 1 : place + 5] == ["apptainer", "exec", "--nv", "k.sif"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("nodes=0", "nodes must be at least 1, got 0"),
        ("nods=2", "config key nods: unknown key; did you mean nodes"),
        ("signal_s=100000", "signal_s must lie between 1 and 65535 seconds, got 100000"),
        (
            "extra=[-C a100]",
            r"extra must contain long options of sbatch, such as --constraint=a100, got '-C a100'",
        ),
        ("extra=[--output=x]", r"extra must not contain --output, which the launcher sets"),
        ("extra=[--no-requeue]", r"extra must not contain --no-requeue"),
    ],
)
def test_a_wrong_cluster_file_is_refused_by_key(override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_cluster(SlurmCluster, None, [override])


@pytest.mark.parametrize("key", ["name", "partition", "time"])
def test_a_value_of_several_lines_is_refused(key: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--[a-z-]+ of sbatch must be one line of printable text, got 'a"):
        read_cluster(SlurmCluster, None, [f'{key}="a\\nb"']).files(job_in(tmp_path / "run"))


@pytest.mark.parametrize("name", ["a\\b", "a\nb"])
def test_a_run_folder_that_slurm_cannot_log_into_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="run_dir must be one line without backslashes"):
        SlurmCluster().files(job_in(tmp_path / name))


def test_the_doctor_requests_the_nodes_and_containers_of_a_job() -> None:
    words = ["gpus_per_node=4", "gpu_type=a100", "python=python3", "extra=[--exclusive]"]
    words += ["srun=[--container-image=i]", "container=[apptainer, exec, i.sif]"]
    [(command, _)] = KINDS["slurm"](None, words).commands
    expected = ["--exclusive", "--container-image=i", "apptainer", "exec", "i.sif", "python3", "-"]
    assert command[-7:] == expected
    assert "--gres=gpu:a100:4" in command and "--time=5" in command


def with_tools(folder: Path, monkeypatch: pytest.MonkeyPatch, **outputs: str) -> None:
    """Put programs first in PATH that print a text; an empty text makes them fail."""
    folder.mkdir()
    for name, text in outputs.items():
        (folder / name).write_text(f"#!/bin/sh\necho '{text}'\n{'' if text else 'exit 1'}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def test_a_job_that_is_cancelled_during_its_requeue_ends_at_its_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tools = tmp_path / "tools"
    with_tools(tools, monkeypatch, squeue="COMPLETING, n1, 0:10 of 1:00", scancel="-", srun="")
    job = make_job(tmp_path)
    run_dir = Path(job.run_dir)
    Record(run_dir).begin(kind="slurm", job_id="7")
    assert "requested a stop of job 7" in cancel_job("7", run_dir)
    job.path.with_name(SETTINGS).write_text("{}")
    command = [sys.executable, "-P", job.script("slurm/batch.py"), str(job.path)]
    ran = subprocess.run(command, env={**os.environ, "SLURM_JOB_ID": "7"}, capture_output=True, text=True)
    assert ran.returncode == 143
    assert ran.stderr.endswith(
        " launch: `launch cancel` has stopped this run: start it with `launch slurm`\n"
    )
    (tools / "squeue").write_text("#!/bin/sh\n")
    assert status_of(run_dir)["code"] == 143


def test_a_file_system_that_does_not_respond_does_not_cost_the_requeue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(run_dir: Path) -> list[int]:
        raise OSError(errno.ESTALE, "Stale file handle")

    with_tools(tmp_path / "tools", monkeypatch, squeue="n1", scontrol="-")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setattr(batch, "catch_signals", lambda received: 0)
    monkeypatch.setattr("kinemae.launch.record.saved_steps", fail)
    monkeypatch.setattr("kinemae.launch.record._PAUSE_S", 0.01)
    job, handlers = make_job(tmp_path), [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGCONT)]
    Record(Path(job.run_dir)).begin(kind="slurm", job_id="7")
    assert batch.BatchJob(SlurmCluster(), job)._end(75, STOPPED) == 75
    for number, handler in zip((signal.SIGTERM, signal.SIGCONT), handlers, strict=True):
        signal.signal(number, handler)
    log = (Path(job.run_dir) / "logs" / "launch.log").read_text()
    assert "cannot read the checkpoints" in log and "requeueing the job" in log


def test_a_requeue_keeps_the_excluded_nodes_of_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_tools(tmp_path / "tools", monkeypatch, squeue="n[1-2]", scontrol="-")
    program, words = tmp_path / "tools" / "scontrol", tmp_path / "words"
    program.write_text(f"#!/bin/sh\necho $* >> {words}\n")
    requeue_job("7", ["n5", "n6"])
    assert words.read_text().splitlines() == ["requeue 7", "update JobId=7 ExcNodeList=n[1-2],n5,n6"]
    program.write_text("#!/bin/sh\necho 'Requested operation is presently disabled' >&2; exit 1\n")
    with pytest.raises(ValueError, match="scontrol failed: Requested operation is presently disabled"):
        requeue_job("7", [])


@pytest.mark.parametrize(
    ("shown", "nodes", "address"),
    [
        ("NodeName=n1 NodeAddr=10.0.0.1 Port=1", "n1", "10.0.0.1"),
        ("", "n1", "n1"),
        ("", "gpu-a,gpu-b", "gpu-a"),
        ("", "gpu-[07-08,11]", "gpu-07"),
    ],
)
def test_the_address_of_the_first_node(
    shown: str, nodes: str, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_tools(tmp_path / "tools", monkeypatch, scontrol=shown)
    assert slurm_address(nodes) == address


def test_a_run_that_was_not_submitted_cannot_be_cancelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with_tools(tmp_path / "tools", monkeypatch, squeue="", scancel="-")
    (tmp_path / "tools" / "squeue").write_text("#!/bin/sh\necho 'Invalid job id: None' >&2; exit 1\n")
    Record(tmp_path).begin(kind="slurm")
    assert main(["cancel", str(tmp_path)]) == 2
    assert "expected a job that sbatch has accepted, got none" in capsys.readouterr().err


def test_a_refused_job_is_no_job_of_the_queue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with_tools(tmp_path / "tools", monkeypatch, sbatch="")
    monkeypatch.setattr("kinemae.launch.cluster.prepare_job", lambda *_, **__: job_in(tmp_path / "run"))
    for _ in range(2):
        assert main(["slurm", "--", "pretrain", "demo"]) == 2
        assert "sbatch refused the job" in capsys.readouterr().err
    assert main(["status", str(tmp_path / "run")]) == 0
    assert "failed: wrong usage or config (exit code 2)" in capsys.readouterr().out


def test_a_job_in_the_folder_of_a_running_launch_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with_tools(tmp_path / "tools", monkeypatch, sbatch="1")
    monkeypatch.setattr("kinemae.launch.cluster.prepare_job", lambda *_, **__: job_in(tmp_path / "run"))
    with lock_run(tmp_path / "run"):
        Record(tmp_path / "run").begin(kind="local")
        assert main(["slurm", "--", "pretrain", "demo"]) == 2
    assert re.search(f"process {os.getpid()} on .* is running it already", capsys.readouterr().err)


@pytest.mark.parametrize("kind", ["local", "slurm"])
def test_a_launch_of_a_run_in_the_queue_of_slurm_is_refused(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with_tools(tmp_path / "tools", monkeypatch, sbatch="1", squeue="PENDING, (Priority), 0:00 of 1:00")
    monkeypatch.setattr("kinemae.launch.cluster.prepare_job", lambda *_, **__: job_in(tmp_path / "run"))
    Record(tmp_path / "run").begin(kind="slurm", job_id="7")
    assert main([kind, "--", "pretrain", "demo"]) == 2
    assert f"job 7 of {tmp_path / 'run'} is pending; fix: set another run_dir" in capsys.readouterr().err


def test_a_stop_that_cannot_be_written_goes_to_the_agents_through_srun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_tools(tmp_path / "tools", monkeypatch, srun="-", scontrol="-")
    began = tmp_path / "began"
    wait = f"trap 'kill $!; exit 75' TERM; touch '{began}'; sleep 30 & wait"
    (tmp_path / "tools" / "srun").write_text(f"#!/bin/sh\n{wait}\n")
    job = make_job(tmp_path)
    (Path(job.run_dir) / "launch" / "stop.partial").mkdir()  # the request cannot be written
    job.path.with_name(SETTINGS).write_text('{"requeue": false}')
    command = [sys.executable, "-P", job.script("slurm/batch.py"), str(job.path)]
    names = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n1", "SLURMD_NODENAME": "n1"}
    batch = subprocess.Popen(command, env={**os.environ, **names})
    wait_for("srun", began.exists)
    batch.terminate()
    assert batch.wait(timeout=20) == 75
