"""The doctor command on real processes, hosts and Slurm, with and without faults."""

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
from kinemae.launch.doctor import targets
from tests.conftest import REPO, run_module
from tests.launch.controller import ask, controller, wait_for
from tests.launch.hosts import Network

# sitecustomize.py of a node with other software and bad memory.
BAD_NODE = """
import importlib.metadata, os
installed = importlib.metadata.version
importlib.metadata.version = lambda name: "2.0.0" if name == "torch" else installed(name)
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
    """The results of one run."""
    ran = run_module("launch", "doctor", kind, "--json", *arguments, check=False)
    assert ran.returncode == code, ran.stdout[-3000:] + ran.stderr
    report = json.loads(ran.stdout)
    assert report["errors"] == sum(result["level"] == "error" for result in report["results"])
    results: list[dict[str, Any]] = report["results"]
    return results


def errors(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [result for result in results if result["level"] == "error"]


def named(results: list[dict[str, Any]], check: str, words: str) -> dict[str, Any]:
    """The error of a check with these words; it has a fix."""
    found = [result for result in errors(results) if result["check"] == check and words in result["text"]]
    assert len(found) == 1, [result["text"] for result in errors(results)]
    assert found[0]["fix"]
    return found[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mars"], "invalid choice: 'mars'"),
        (["local", "proceses=2"], "did you mean processes"),
        (["local", "python=/nowhere/python"], "no program '/nowhere/python' on this machine"),
        (["local", "--shards", "s3://bucket/shards"], "got the URL s3://bucket/shards"),
        (["ssh", "hosts={a: 1}", "link_gbit=0"], "link_gbit must be above 0"),
    ],
)
def test_wrong_usage_exits_with_2(arguments: list[str], message: str) -> None:
    ran = run_module("launch", "doctor", *arguments, check=False)
    assert ran.returncode == 2
    assert message in ran.stderr


def test_dry_run_prints_the_commands_of_the_probes() -> None:
    printed = run_module("launch", "doctor", "ssh", "hosts={nowhere.invalid: 8}", "--dry-run").stdout
    assert "nowhere.invalid" in printed
    assert "exec(sys.stdin.readline())" in printed


@pytest.mark.processes
def test_a_job_on_this_machine_passes_and_leaves_no_files(tmp_path: Path, synth_shards: Path) -> None:
    config = ["configs/pretrain/demo.yaml", f"data.shards={synth_shards / 'unlabelled'}"]
    job = ["--", "pretrain", *config, f"run_dir={tmp_path / 'runs/a'}"]
    results = doctor("local", "processes=2", *job, code=0)
    assert {"versions", "machine", "port", "group", "speed", "folder"} <= {
        result["check"] for result in results
    }
    texts = [result["text"] for result in results]
    assert "2 processes with gloo: all sums are correct" in texts
    assert f"{tmp_path / 'runs/a'}: written, renamed and seen by 1 node and this machine" in texts
    assert list(tmp_path.iterdir()) == []  # including the folders made for the check


@pytest.mark.processes
def test_two_hosts_behind_ssh_pass(network: Network, tmp_path: Path, synth_shards: Path) -> None:
    shards = str(synth_shards / "train")
    results = doctor("ssh", *network.overrides(), "--run-dir", str(tmp_path), "--shards", shards, code=0)
    texts = " ".join(result["text"] for result in results)
    assert "nodes reach one another through eth0" in texts
    assert f"{tmp_path}: written, renamed and seen by 2 nodes and this machine" in texts
    assert f"a lock in {tmp_path} holds on all nodes" in texts
    assert f"{shards}: the same bytes on 2 nodes" in texts
    assert "of a link of 10 Gbit/s" in texts  # the speed that a veth reports


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
    results = doctor("ssh", *network.overrides(), f"python={python}", "--run-dir", str(runs), code=1)
    good = network.hosts[0].name
    assert f"torch is 2.0.0 on {bad}" in named(results, "versions", "torch")["text"]
    assert f"values sent by {bad} arrive changed" in named(results, "group", "sums are wrong")["text"]
    assert named(results, "group", "sums are wrong")["nodes"] == [bad]
    named(results, "folder", f"{bad} cannot write to {runs}: No such file or directory")
    shared = named(results, "folder", f"{bad} does not see the file")
    assert good in shared["text"]
    assert "mount the same file system" in shared["fix"]


@pytest.mark.processes
def test_nodes_that_cannot_reach_one_another_are_named(network: Network) -> None:
    first, second = network.hosts
    route = ["ip", "-n", second.namespace, "route"]
    subprocess.run([*route, "add", "unreachable", first.name], check=True)
    try:
        results = doctor("ssh", *network.overrides(), code=1)
    finally:
        subprocess.run([*route, "delete", "unreachable", first.name], check=True)
    named(results, "network", f"{second.name} cannot connect to {first.name} as {first.name}, rendezvous")
    named(results, "network", f"{first.name} cannot connect to {second.name}")
    assert "No route to host" in str(results)
    assert [result["text"] for result in results if result["check"] == "group"] == [
        "no process group was started, because the nodes cannot reach one another"
    ]


@pytest.mark.processes
def test_a_host_behind_a_broken_link_is_named_and_the_others_are_checked(network: Network) -> None:
    lost = network.hosts[1]
    quick = [*network.ssh, "-o", "ConnectTimeout=2"]
    lost.disconnect()
    try:
        results = doctor("ssh", *network.overrides(), f"ssh=[{', '.join(quick)}]", code=1)
    finally:
        lost.reconnect()
    assert named(results, "reach", f"cannot start a probe on {lost.name}: ssh: connect to host")["nodes"] == [
        lost.name
    ]
    assert "1 process with gloo: all sums are correct" in [result["text"] for result in results]


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
        results = doctor("ssh", *network.overrides(), f"master_port={port}", code=1)
        holder.communicate()
    taken = named(results, "port", f"port {port} is not available on {first.name}: Address already in use")
    assert "`master_port`" in taken["fix"]


@pytest.mark.processes
def test_a_disk_that_is_full_is_named(tmp_path: Path) -> None:
    small = ["mount", "-t", "tmpfs", "-o", "size=16k", "none", str(tmp_path)]
    if subprocess.run(small, capture_output=True).returncode != 0:
        pytest.skip("mounting a small disk needs root")
    try:
        results = doctor("local", "--run-dir", str(tmp_path), code=1)
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
    full = named(results, "folder", f"localhost cannot write to {tmp_path}: No space left on device")
    assert "free some space" in full["fix"]


@pytest.fixture(scope="module")
def slurm() -> Iterator[None]:
    with controller():
        yield


@pytest.mark.cluster
@pytest.mark.processes
@pytest.mark.usefixtures("slurm")
def test_two_nodes_of_slurm_pass(tmp_path: Path) -> None:
    results = doctor("slurm", "nodes=2", "--run-dir", str(tmp_path), code=0)
    texts = [result["text"] for result in results]
    assert "2 processes with gloo: all sums are correct" in texts
    assert f"{tmp_path}: written, renamed and seen by 2 nodes and this machine" in texts
    assert any(f"is free on n{number}" in text for number in (1, 2) for text in texts)
    assert socket.gethostname() not in " ".join(texts)  # nodes have Slurm's names


@pytest.mark.cluster
@pytest.mark.processes
@pytest.mark.usefixtures("slurm")
@pytest.mark.parametrize(
    ("cluster", "limit"),
    [
        (["partition=short"], "--time=2:00 "),
        (["time=3", "signal_s=60"], "--time=3:00 "),
        (["time=30"], "--time=5 "),
        ([], "--time=5 "),
    ],
)
def test_the_probe_requests_at_most_the_time_limit_of_a_job(cluster: list[str], limit: str) -> None:
    assert limit in run_module("launch", "doctor", "slurm", *cluster, "--dry-run").stdout


@pytest.mark.cluster
@pytest.mark.processes
@pytest.mark.usefixtures("slurm")
def test_a_drained_node_is_named_and_every_job_is_cancelled(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ask("scontrol", "update", "nodename=n2", "state=drain", "reason=bad disk")
    try:
        monkeypatch.setattr(targets, "_QUEUE_S", 4.0)
        assert main(["doctor", "slurm", "nodes=2", "--json"]) == 1
        late = named(json.loads(capsys.readouterr().out)["results"], "reach", "no reply within 4 s")
        assert re.match(r"no reply within 4 s; job \d+ is PENDING because of ", late["text"])
        assert "n2 is drained (bad disk)" in late["text"] and "node 0" not in late["text"]
        assert ask("squeue", "--noheader") == ""
        for number, code in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
            command = [sys.executable, "-m", "kinemae", "launch", "doctor", "slurm", "nodes=2"]
            with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=REPO) as started:
                wait_for(lambda: "PD" in ask("squeue", "--noheader"), doing="the doctor's job")
                started.send_signal(number)
                _, output = started.communicate(timeout=60)
            assert (started.returncode, output) == (code, "interrupted: the probes have ended\n")
            wait_for(lambda: ask("squeue", "--noheader") == "", seconds=20, doing="an empty queue")
    finally:
        ask("scontrol", "update", "nodename=n2", "state=resume")
