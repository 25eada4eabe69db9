"""The doctor command on real processes, hosts and Slurm, with and without faults."""

import json
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from kinemae.launch.__main__ import main
from kinemae.launch.doctor import nodes
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
    reduce = dist.all_reduce
    def bad_reduce(values, *arguments, **options):
        values.view(-1)[:1] += values.ndim
        reduce(values, *arguments, **options)
    dist.all_reduce = bad_reduce
"""


def doctor(kind: str, *arguments: str, code: int) -> list[dict[str, Any]]:
    """The results of one run, in this process."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    with redirect_stdout(StringIO()) as output:
        found = main(["doctor", kind, "--json", *arguments])
    for number, handler in handlers.items():
        signal.signal(number, handler)
    assert found == code, output.getvalue()[-3000:]
    results: list[dict[str, Any]] = json.loads(output.getvalue())["results"]
    return results


@pytest.fixture
def quick_group(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give up joining the process group earlier; the ranks import torch within this time."""
    monkeypatch.setattr(nodes, "GROUP_S", 20)


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
        (["mars"], "the kind of cluster must be one of local, ssh, slurm, got 'mars'"),
        (["local", "proceses=2"], "did you mean processes"),
        (
            ["local", "python=/nowhere/python"],
            "expected a program '/nowhere/python' on this machine",
        ),
        (["local", "--shards", "s3://bucket/shards"], "got the URL s3://bucket/shards"),
    ],
)
def test_wrong_usage_exits_with_2(arguments: list[str], message: str) -> None:
    ran = run_module("launch", "doctor", *arguments, check=False)
    assert ran.returncode == 2
    assert message in ran.stderr


def test_dry_run_prints_the_commands_of_the_probes() -> None:
    printed = run_module("launch", "doctor", "ssh", "hosts={nowhere.invalid: 8}", "--dry-run").stdout
    assert f"nowhere.invalid '{sys.executable} - 0'" in printed


@pytest.mark.processes
def test_a_job_on_this_machine_passes_and_leaves_no_files(tmp_path: Path, synth_shards: Path) -> None:
    config = [str(REPO / "configs/pretrain/demo.yaml"), f"data.shards={synth_shards / 'unlabelled'}"]
    job = ["--", "pretrain", *config, f"run_dir={tmp_path / 'runs/a'}"]
    [summary] = doctor("local", "processes=2", "--shards", str(synth_shards / "train"), *job, code=0)
    assert summary["text"].startswith("1 of 1 nodes reported; python 3.")
    assert "2 of 2 processes formed a group; all-reduce " in summary["text"]
    assert list((tmp_path / "runs/a").iterdir()) == []


@pytest.mark.processes
def test_a_node_that_cannot_describe_itself_is_named(tmp_path: Path) -> None:
    python = tmp_path / "python"
    (tmp_path / "sitecustomize.py").write_text(
        "import os\nstat = os.stat\ndef failing(path, **options):\n"
        "    if path == '/proc/self/ns/net':\n        raise PermissionError(13, 'Permission denied', path)\n"
        "    return stat(path, **options)\nos.stat = failing\n"
    )
    python.write_text(f'#!/bin/sh\nPYTHONPATH={tmp_path} exec {shlex.quote(sys.executable)} "$@"\n')
    python.chmod(0o755)
    results = doctor("local", f"python={python}", code=1)
    named(results, "version", "the check of 'host' failed on localhost: PermissionError")


@pytest.mark.processes
def test_two_hosts_behind_ssh_pass(network: Network, tmp_path: Path, synth_shards: Path) -> None:
    shards = str(synth_shards / "train")
    [summary] = doctor("ssh", *network.overrides(), "--run-dir", str(tmp_path), "--shards", shards, code=0)
    assert summary["text"].startswith("2 of 2 nodes reported")
    assert "MB/s with gloo; " in summary["text"] and summary["text"].endswith(" GB free for the run")


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
    shards = ["--shards", str(runs)]
    results = doctor("ssh", *network.overrides(), f"python={python}", "--run-dir", str(runs), *shards, code=1)
    good = network.hosts[0].name
    assert f"torch is 2.0.0 on {bad}" in named(results, "version", "torch")["text"]
    assert "value 0 is 1 instead of 0" in named(results, "sums", "sums with gloo are wrong on")["text"]
    named(results, "folder", f"'folder' failed on {bad}: FileNotFoundError: ")
    unseen = named(results, "folder", f"{bad} does not see the file that {good} wrote to {runs}")
    assert "mount one file system" in unseen["fix"]
    assert (
        f"{good}, {bad} cannot read {runs}: FileNotFoundError: "
        in named(results, "shards", "dataset.json")["text"]
    )


@pytest.mark.nightly
@pytest.mark.processes
@pytest.mark.usefixtures("quick_group")
def test_nodes_that_cannot_reach_one_another_are_named(network: Network) -> None:
    first, second = network.hosts
    route = ["ip", "-n", second.namespace, "route"]
    subprocess.run([*route, "add", "unreachable", first.name], check=True)
    try:
        results = doctor("ssh", *network.overrides(), code=1)
    finally:
        subprocess.run([*route, "delete", "unreachable", first.name], check=True)
    unreached = named(results, "group", f"stopped at joining the group on {second.name}: ended with exit")
    assert f"cannot connect to {first.name}, port " in unreached["text"]
    assert "No route to host" in unreached["text"] and "`master_addr`" in unreached["fix"]


@pytest.mark.nightly
@pytest.mark.processes
@pytest.mark.usefixtures("quick_group")
def test_a_hostname_that_means_the_loopback_is_named(network: Network, tmp_path: Path) -> None:
    overrides = [word for word in network.overrides() if "GLOO_SOCKET_IFNAME" not in word]
    python = tmp_path / "python"  # as on Debian: 127.0.1.1 for the own hostname
    hosts = tmp_path / "hosts"
    hosts.write_text(f"127.0.0.1 localhost\n127.0.1.1 {socket.gethostname()}\n")
    mount = f"exec unshare -m sh -c 'mount --bind {hosts} /etc/hosts && exec \"$@\"' sh"
    python.write_text(f'#!/bin/sh\n{mount} {shlex.quote(sys.executable)} "$@"\n')
    python.chmod(0o755)
    results = doctor("ssh", *overrides, f"python={python}", code=1)
    names = ", ".join(host.name for host in network.hosts)
    loopback = named(results, "hostname", f"{names}: its hostname")
    assert "environment.GLOO_SOCKET_IFNAME" in loopback["fix"] and len(errors(results)) == 1


@pytest.mark.nightly
@pytest.mark.processes
@pytest.mark.usefixtures("quick_group")
def test_a_host_behind_a_broken_link_is_named(network: Network) -> None:
    lost = network.hosts[1]
    quick = [*network.ssh, "-o", "ConnectTimeout=2"]
    lost.disconnect()
    try:
        results = doctor("ssh", *network.overrides(), f"ssh=[{', '.join(quick)}]", code=1)
    finally:
        lost.reconnect()
    started = named(results, "start", f"cannot start a probe on {lost.name}: ssh: connect to host")
    assert started["nodes"] == [lost.name] and len(errors(results)) == 1
    assert "1 of 2 nodes reported" in results[-1]["text"]


@pytest.mark.processes
@pytest.mark.usefixtures("quick_group")
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
    taken = named(results, "group", f"stopped at joining the group on {first.name}: ended with exit code 1")
    assert "EADDRINUSE" in taken["text"] and "`master_port`" in taken["fix"] and len(errors(results)) == 1


@pytest.mark.processes
def test_a_disk_that_is_full_is_named(tmp_path: Path) -> None:
    small = ["mount", "-t", "tmpfs", "-o", "size=16k", "none", str(tmp_path)]
    if subprocess.run(small, capture_output=True).returncode != 0:
        pytest.skip("mounting a small disk needs root")
    try:
        results = doctor("local", "--run-dir", str(tmp_path), code=1)
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
    full = named(
        results,
        "folder",
        "'folder' failed on localhost: OSError: [Errno 28] No space left on device",
    )
    assert "free space" in full["fix"]


@pytest.fixture(scope="module")
def slurm() -> Iterator[None]:
    with controller():
        yield


@pytest.mark.cluster
@pytest.mark.processes
@pytest.mark.usefixtures("slurm")
def test_two_nodes_of_slurm_pass(tmp_path: Path) -> None:
    [summary] = doctor("slurm", "nodes=2", "--run-dir", str(tmp_path), code=0)
    assert "2 of 2 processes formed a group" in summary["text"]


@pytest.mark.cluster
@pytest.mark.processes
@pytest.mark.usefixtures("slurm")
def test_a_drained_node_is_named_and_every_job_is_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    ask("scontrol", "update", "nodename=n2", "state=drain", "reason=bad disk")
    try:
        monkeypatch.setattr(nodes, "_QUEUE_S", 4)
        late = named(doctor("slurm", "nodes=2", code=1), "start", "cannot start a probe on node 0, ")
        assert "srun: error: " in late["text"] and "sinfo -R" in late["fix"]
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
