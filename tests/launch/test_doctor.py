"""The doctor as a command, on real processes, real hosts and a real Slurm; healthy, and broken on purpose."""

import json
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kinemae.launch.__main__ import main
from kinemae.launch.doctor.checks import targets
from tests.conftest import REPO, run_module
from tests.launch.controller import ask, controller, wait_for
from tests.launch.hosts import Network

# What a node with other software, another clock and bad memory does: its python reads this first.
BAD_NODE = """
import importlib.metadata, os, time
installed, clock = importlib.metadata.version, time.time
importlib.metadata.version = lambda name: "2.0.0" if name == "torch" else installed(name)
time.time = lambda: clock() + 500
if "RANK" in os.environ:
    import torch.distributed as dist
    reduce, broadcast = dist.all_reduce, dist.broadcast
    def bad_reduce(values):
        values[0] += 1
        reduce(values)
    def bad_broadcast(values, src):
        values += src == dist.get_rank()
        broadcast(values, src=src)
    dist.all_reduce, dist.broadcast = bad_reduce, bad_broadcast
"""


def doctor(kind: str, *arguments: str, code: int) -> list[dict[str, Any]]:
    """The findings of one round."""
    ran = run_module("launch", "doctor", kind, "--json", *arguments, check=False)
    assert ran.returncode == code, ran.stdout[-3000:] + ran.stderr
    told = json.loads(ran.stdout)
    assert told["errors"] == sum(finding["level"] == "error" for finding in told["findings"])
    findings: list[dict[str, Any]] = told["findings"]
    return findings


def errors(findings: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [finding for finding in findings if finding["level"] == "error"]


def named(findings: list[dict[str, Any]], check: str, words: str) -> dict[str, Any]:
    """The error of a check that says these words; it has a mend."""
    found = [
        finding for finding in errors(findings) if finding["check"] == check and words in finding["text"]
    ]
    assert len(found) == 1, [finding["text"] for finding in errors(findings)]
    assert found[0]["mend"]
    return found[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mars"], "invalid choice: 'mars'"),
        (["local", "proceses=2"], "did you mean 'processes'"),
        (["local", "python=/nowhere/python"], "no program '/nowhere/python' on this machine"),
        (["local", "--shards", "s3://bucket/shards"], "s3://bucket/shards is a URL"),
        (["ssh", "hosts={a: 1}", "link_gbit=0"], "link_gbit must be above 0"),
    ],
)
def test_a_wrong_call_leaves_with_2(arguments: list[str], message: str) -> None:
    ran = run_module("launch", "doctor", *arguments, check=False)
    assert ran.returncode == 2
    assert message in ran.stderr


def test_dry_run_prints_how_the_probes_would_start_and_starts_none() -> None:
    printed = run_module("launch", "doctor", "ssh", "hosts={nowhere.invalid: 8}", "--dry-run").stdout
    assert "nowhere.invalid" in printed
    assert "exec(sys.stdin.readline())" in printed


@pytest.mark.processes
def test_a_job_on_this_machine_is_well_and_leaves_nothing_behind(tmp_path: Path, synth_shards: Path) -> None:
    config = ["configs/pretrain/demo.yaml", f"data.shards={synth_shards / 'unlabelled'}"]
    job = ["--", "pretrain", *config, f"run_dir={tmp_path / 'runs/a'}"]
    findings = doctor("local", "processes=2", *job, code=0)
    assert {"versions", "machine", "clock", "port", "group", "speed", "folder"} <= {
        finding["check"] for finding in findings
    }
    texts = [finding["text"] for finding in findings]
    assert "2 processes over gloo: every sum is right" in texts
    assert f"{tmp_path / 'runs/a'}: written, renamed and seen by 1 node and this machine" in texts
    assert list(tmp_path.iterdir()) == []  # not even the folders made for it


@pytest.mark.processes
def test_two_hosts_behind_ssh_are_well(network: Network, tmp_path: Path, synth_shards: Path) -> None:
    shards = str(synth_shards / "train")
    findings = doctor("ssh", *network.overrides(), "--run-dir", str(tmp_path), "--shards", shards, code=0)
    texts = " ".join(finding["text"] for finding in findings)
    assert "nodes reach one another through eth0" in texts
    assert f"{tmp_path}: written, renamed and seen by 2 nodes and this machine" in texts
    assert f"a lock in {tmp_path} holds on all nodes" in texts
    assert f"{shards}: the same bytes on 2 nodes" in texts
    assert "of a link of 10 Gbit/s" in texts  # what a veth says of itself


@pytest.mark.processes
def test_each_fault_of_a_bad_node_is_named(network: Network, tmp_path: Path) -> None:
    runs, patches, python = tmp_path / "runs", tmp_path / "patches", tmp_path / "python"
    runs.mkdir()
    patches.mkdir()
    (patches / "sitecustomize.py").write_text(BAD_NODE)
    bad, interpreter = network.hosts[1].name, shlex.quote(sys.executable)
    python.write_text(
        "#!/bin/sh\n"
        f"if ip -4 address show eth0 | grep -qF 'inet {bad}/'; then\n"
        f"  export PYTHONPATH={patches}\n"
        f'  exec unshare -m sh -c \'mount -t tmpfs none {runs} && exec "$@"\' sh {interpreter} "$@"\n'
        f'fi\nexec {interpreter} "$@"\n'
    )
    python.chmod(0o755)
    findings = doctor("ssh", *network.overrides(), f"python={python}", "--run-dir", str(runs), code=1)
    good = network.hosts[0].name
    assert f"torch is 2.0.0 on {bad}" in named(findings, "versions", "torch")["text"]
    named(findings, "clock", f"the clock of {bad} is 500.0 s ahead of the others")
    assert f"what {bad} sent arrives changed" in named(findings, "group", "come out wrong")["text"]
    assert named(findings, "group", "come out wrong")["nodes"] == [bad]
    named(findings, "folder", f"{bad} cannot write to {runs}: No such file or directory")
    shared = named(findings, "folder", f"{bad} does not see what")
    assert good in shared["text"]
    assert "not one shared folder" in shared["mend"]


@pytest.mark.processes
def test_nodes_that_cannot_reach_one_another_are_named(network: Network) -> None:
    first, second = network.hosts
    route = ["ip", "-n", second.namespace, "route"]
    subprocess.run([*route, "add", "unreachable", first.name], check=True)
    try:
        findings = doctor("ssh", *network.overrides(), code=1)
    finally:
        subprocess.run([*route, "delete", "unreachable", first.name], check=True)
    named(findings, "network", f"{second.name} cannot connect to {first.name} as {first.name}, port")
    named(findings, "network", f"{first.name} cannot connect to {second.name}")
    assert "where ranks meet: No route to host" in str(findings)
    assert [finding["text"] for finding in findings if finding["check"] == "group"] == [
        "no process group was tried, since the nodes cannot reach one another"
    ]


@pytest.mark.processes
def test_a_host_behind_a_cut_link_is_named_and_the_rest_is_looked_at(network: Network) -> None:
    lost = network.hosts[1]
    quick = [*network.ssh, "-o", "ConnectTimeout=2"]
    lost.cut()
    try:
        findings = doctor("ssh", *network.overrides(), f"ssh=[{', '.join(quick)}]", code=1)
    finally:
        lost.mend()
    assert named(findings, "reach", f"{lost.name} cannot be asked: ssh: connect to host")["nodes"] == [
        lost.name
    ]
    assert "1 process over gloo: every sum is right" in [finding["text"] for finding in findings]


@pytest.mark.processes
def test_a_port_that_is_taken_is_named(network: Network) -> None:
    first = network.hosts[0]
    holding = (
        "import socket, sys; held = socket.create_server(('', 0)); "
        "print(held.getsockname()[1], flush=True); sys.stdin.read()"
    )
    command = first.inside(sys.executable, "-c", holding)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout
        port = int(holder.stdout.readline())
        findings = doctor("ssh", *network.overrides(), f"master_port={port}", code=1)
        holder.communicate()
    taken = named(findings, "port", f"port {port} cannot be had on {first.name}: Address already in use")
    assert "`master_port`" in taken["mend"]


@pytest.mark.processes
def test_a_disk_that_is_full_is_named(tmp_path: Path) -> None:
    small = ["mount", "-t", "tmpfs", "-o", "size=16k", "none", str(tmp_path)]
    if subprocess.run(small, capture_output=True).returncode != 0:
        pytest.skip("mounting a small disk needs root")
    try:
        findings = doctor("local", "--run-dir", str(tmp_path), code=1)
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
    full = named(findings, "folder", f"localhost cannot write to {tmp_path}: No space left on device")
    assert "free some space" in full["mend"]


@pytest.fixture(scope="module")
def slurm() -> Iterator[None]:
    with controller():
        yield


@pytest.mark.cluster
@pytest.mark.processes
@pytest.mark.usefixtures("slurm")
def test_two_nodes_of_slurm_are_well(tmp_path: Path) -> None:
    findings = doctor("slurm", "nodes=2", "--run-dir", str(tmp_path), code=0)
    texts = [finding["text"] for finding in findings]
    assert "2 processes over gloo: every sum is right" in texts
    assert f"{tmp_path}: written, renamed and seen by 2 nodes and this machine" in texts
    assert any(f"is free on n{number}" in text for number in (1, 2) for text in texts)
    assert socket.gethostname() not in " ".join(texts)  # nodes go by Slurm's names


@pytest.mark.cluster
@pytest.mark.processes
@pytest.mark.usefixtures("slurm")
@pytest.mark.parametrize(
    ("cluster", "limit"),
    [
        (["partition=short"], "--time=2:00 "),
        (["time=3", "warn_s=60"], "--time=3:00 "),
        (["time=30"], "--time=5 "),
        ([], "--time=5 "),
    ],
)
def test_the_probe_asks_for_no_more_time_than_a_job_gets(cluster: list[str], limit: str) -> None:
    assert limit in run_module("launch", "doctor", "slurm", *cluster, "--dry-run").stdout


@pytest.mark.cluster
@pytest.mark.processes
@pytest.mark.usefixtures("slurm")
def test_a_drained_node_is_named_and_no_job_stays_however_the_doctor_ends(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ask("scontrol", "update", "nodename=n2", "state=drain", "reason=bad disk")
    try:
        monkeypatch.setattr(targets, "_QUEUE_S", 4.0)
        assert main(["doctor", "slurm", "nodes=2", "--json"]) == 1
        late = named(json.loads(capsys.readouterr().out)["findings"], "reach", "no answer within 4 s")
        assert re.match(r"no answer within 4 s; job \d+ is PENDING because of ", late["text"])
        assert "n2 is drained (bad disk)" in late["text"] and "node 0" not in late["text"]
        assert ask("squeue", "--noheader") == ""
        for number, code in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
            command = [sys.executable, "-m", "launch", "doctor", "slurm", "nodes=2"]
            with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=REPO) as started:
                wait_for(lambda: "PD" in ask("squeue", "--noheader"), doing="the doctor's job")
                started.send_signal(number)
                _, said = started.communicate(timeout=60)
            assert (started.returncode, said) == (code, "interrupted: the probes are ended\n")
            wait_for(lambda: ask("squeue", "--noheader") == "", seconds=20, doing="an empty queue")
    finally:
        ask("scontrol", "update", "nodename=n2", "state=resume")
