"""`launch ssh` on two real hosts (network namespaces): hostile words, lost hosts, broken links, stops."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from kinemae.launch.cluster import read_cluster
from kinemae.launch.record import Record, is_locked, read_record, request_stop
from kinemae.launch.ssh import SshCluster, SshRun, address_of
from kinemae.launch.supervisor.hosts import HostStatus, hostname_problem, resolution_error
from tests.launch.fake_program import (
    are_waiting,
    launcher_of,
    make_job,
    processes_of,
    reports,
    run_launcher,
    wait_for,
)
from tests.launch.hosts import Network

HOSTILE = ["a b", "$(touch x)", "it's", '"', "a;b|c>d", "ü\nz", "--flag", "-x", "", "*", "\\", "`id`", "!!"]
# A lost host is detected within 5 s instead of 15; an agent without heartbeat ends after 10 s.
QUICK = ["-o", "ServerAliveInterval=1", "-o", "ServerAliveCountMax=5", "-o", "ConnectTimeout=5"]


def cluster(network: Network, *more: str) -> list[str]:
    hosts, ssh, *rest = network.overrides()
    return [hosts, f"{ssh[:-1]}, {', '.join(QUICK)}]", *rest, "grace_s=2", "heartbeat_timeout_s=8", *more]


@pytest.mark.processes
def test_hostile_words_reach_every_host_as_they_are(tmp_path: Path, network: Network) -> None:
    folder = tmp_path / "it's $(a) folder"
    folder.mkdir()
    job = make_job(folder, "report", *HOSTILE, GIVEN="$HOME 'x'\ny")
    code, output = run_launcher(job, "ssh", *cluster(network))
    assert code == 0, output
    for rank, process in enumerate(reports(job)):
        assert process["argv"] == ["pretrain", "CONFIG", "report", *HOSTILE]
        assert (process["RANK"], process["LOCAL_RANK"], process["WORLD_SIZE"]) == (str(rank), "0", "2")
        assert process["MASTER_ADDR"] == network.hosts[0].name
        assert process["GIVEN"] == "$HOME 'x'\ny" and process["cwd"] == job.cwd


def with_aliases(network: Network, folder: Path, *more: str) -> list[str]:
    """Name the hosts by aliases of the ssh config, without an interface."""
    entries = [
        f"Host {alias}\n  HostName {host.name}\n  HostKeyAlias {host.name}\n"
        for alias, host in zip(("alpha", "beta"), network.hosts, strict=True)
    ]
    (folder / "ssh_config").write_text("".join(entries))
    ssh = [str(folder / "ssh_config") if word == "none" else word for word in network.ssh]
    return ["hosts={alpha: 1, beta: 1}", f"ssh=[{', '.join(ssh + QUICK)}]", *more]


@pytest.mark.processes
@pytest.mark.parametrize(
    ("more", "says"),
    [
        ([], "alpha cannot resolve 'alpha', the rendezvous host (Name or service not known"),
        (["master_addr=nowhere.invalid"], "alpha cannot resolve 'nowhere.invalid'"),
        (["master_addr=FIRST"], "alpha: its hostname"),
    ],
)
def test_hosts_that_cannot_resolve_one_another_are_refused_before_the_start(
    tmp_path: Path, network: Network, more: list[str], says: str
) -> None:
    job = make_job(tmp_path, "report")
    words = [word.replace("FIRST", network.hosts[0].name) for word in more]
    code, output = run_launcher(job, "ssh", *with_aliases(network, tmp_path, *words))
    assert code == 1 and says.partition(" (")[0] in output  # a ValueError in `LAUNCHER`
    assert "set environment.GLOO_SOCKET_IFNAME and environment.NCCL_SOCKET_IFNAME" in output
    assert ("master_addr to an address of alpha" in output) == ("resolve" in says)
    assert "start 1" not in output and not (Path(job.run_dir) / "reports.jsonl").exists()


@pytest.mark.nightly
@pytest.mark.processes
def test_hosts_by_ssh_aliases_run_with_an_address_and_an_interface(tmp_path: Path, network: Network) -> None:
    job = make_job(tmp_path, "report")
    more = [f"master_addr={network.hosts[0].name}", "environment.GLOO_SOCKET_IFNAME=eth0"]
    code, output = run_launcher(job, "ssh", *with_aliases(network, tmp_path, *more))
    assert code == 0, output
    assert [process["MASTER_ADDR"] for process in reports(job)] == [network.hosts[0].name] * 2


def test_a_host_that_replaces_the_first_has_an_address_also_if_only_ssh_knows_its_name() -> None:
    status = HostStatus(own_address="10.0.0.7")
    assert address_of("me@an-alias.invalid", status) == "10.0.0.7"
    assert address_of("me@localhost", status) == "localhost"
    assert address_of("an-alias.invalid", HostStatus()) == "an-alias.invalid"


def test_a_name_that_does_not_resolve_at_a_restart_does_not_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {"a": HostStatus(machine="1"), "b": HostStatus(machine="2", resolve_error="Try again")}
    monkeypatch.setattr("kinemae.launch.ssh.catch_signals", lambda received: 0)
    monkeypatch.setattr("kinemae.launch.ssh.query_hosts", lambda commands: found)
    job = make_job(tmp_path)
    run = SshRun(SshCluster(hosts={"a": 1, "b": 1}), job)
    assert run._find_hosts(is_first=False) == found
    assert "b cannot resolve 'a'" in (Path(job.run_dir) / "logs" / "launch.log").read_text()
    with pytest.raises(ValueError, match="b cannot resolve 'a'"):
        run._find_hosts(is_first=True)


@pytest.mark.parametrize(("stop", "code"), [(None, 5), (2, 130)])
def test_agents_that_end_without_a_result_are_no_wrong_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int | None, code: int
) -> None:
    monkeypatch.setattr("kinemae.launch.ssh.catch_signals", lambda received: 0)
    job = make_job(tmp_path)
    Record(Path(job.run_dir)).begin(kind="ssh")
    run = SshRun(SshCluster(hosts={"a": 1}, max_restarts=0), job)

    def watch(*_: Any) -> None:
        run._stop = stop

    monkeypatch.setattr(run, "_find_hosts", lambda is_first: {"a": HostStatus(port=1)})
    monkeypatch.setattr(run, "_watch", watch)
    assert run.run() == code and read_record(Path(job.run_dir))["code"] == code


def test_name_resolution_matters_between_different_machines() -> None:
    good = {"machine": "1", "own_address": "10.0.0.1"}
    one = {"a": HostStatus(**good), "b": HostStatus(**{**good, "resolve_error": "no"})}
    assert resolution_error(one, "a", {}) is None, "one machine reaches itself"
    problem = hostname_problem("b", "127.0.1.1")
    two = {"a": HostStatus(**good), "b": HostStatus(machine="2", hostname_error=problem)}
    assert "'b' resolves to 127.0.1.1; Gloo announces that address" in str(resolution_error(two, "a", {}))
    assert resolution_error(two, "a", {"GLOO_SOCKET_IFNAME": "eth0"}) is None
    assert "'b' cannot be resolved; Gloo" in str(hostname_problem("b", None))
    assert hostname_problem("b", "10.0.0.2") is None


@pytest.mark.processes
def test_a_failure_on_one_host_is_reported_once_and_ends_the_other(tmp_path: Path, network: Network) -> None:
    job = make_job(tmp_path, "1:print=this is why", "1:exit=3", "handle_stops", "wait=600")
    code, output = run_launcher(job, "ssh", *cluster(network))
    assert code == 3 and output.count("this is why") == 1
    assert f"rank 1 on {network.hosts[1].name} failed: the data cannot be used (exit code 3)" in output
    wait_for("end of all processes", lambda: processes_of(job) == [])


@pytest.mark.nightly
@pytest.mark.processes
@pytest.mark.parametrize(
    ("victim", "cause", "code"),
    [
        ("lose_peer=1", "kill=SIGKILL", 137),  # gloo: an error of Python
        ("kill=SIGABRT", "exit=1", 1),  # the watchdog of NCCL
    ],
)
def test_a_victim_of_a_failure_on_another_host_is_not_its_cause(
    tmp_path: Path, network: Network, victim: str, cause: str, code: int
) -> None:
    job = make_job(tmp_path, f"0:{victim}", "1:wait=1", f"1:{cause}")
    found, output = run_launcher(job, "ssh", *cluster(network, "max_restarts=0"))
    assert found == code
    assert f"rank 1 on {network.hosts[1].name} failed" in output and "rank 0 on" not in output
    failure = read_record(Path(job.run_dir))["failure"]
    assert (failure["rank"], failure["host"], failure["code"]) == (1, network.hosts[1].name, code)
    assert failure["message"] is None


@pytest.mark.processes
def test_after_a_host_dies_the_run_continues_on_the_others(tmp_path: Path, network: Network) -> None:
    lost, left = network.hosts
    job = make_job(tmp_path, "handle_stops", "save=7", "once=wait=600", "report")
    words = [f"hosts={{{lost.name}: 1, {left.name}: 3}}", *cluster(network)[1:]]
    launcher = launcher_of(job, "ssh", *words)
    wait_for("processes", are_waiting(job, 4))
    lost.kill()
    try:
        assert launcher.wait(timeout=90) == 0
    finally:
        lost.start()
    output = (Path(job.run_dir) / "output").read_text()
    assert f"{lost.name} is lost" in output and f"continuing without {lost.name}" in output
    # The remaining three cannot share a batch of four.
    assert (
        f"start 2: 2 processes (2 on {left.name}), rendezvous {left.name}" in output
        and "from step 7" in output
    )
    assert [process["WORLD_SIZE"] for process in reports(job)] == ["2", "2"]


@pytest.mark.nightly
@pytest.mark.processes
def test_after_a_broken_link_the_others_continue(tmp_path: Path, network: Network) -> None:
    job = make_job(tmp_path, "handle_stops", "1:once=wait=600", "0:once=wait=600")
    launcher = launcher_of(job, "ssh", *cluster(network))
    wait_for("processes", are_waiting(job, 2))
    behind = network.hosts[1]
    behind.disconnect()
    try:
        assert launcher.wait(timeout=90) == 0
        mine = set(processes_of(job))
        wait_for("end of those behind the cut", lambda: not mine & set(processes_of(job)))
        agent_log = (Path(job.run_dir) / "output").read_text()
        assert f"{behind.name} is lost" in agent_log and "start 2: 1 processes" in agent_log
    finally:
        behind.reconnect()


@pytest.mark.processes
@pytest.mark.parametrize("way", [pytest.param("cancel", marks=pytest.mark.nightly), "signal"])
def test_a_stop_reaches_every_host(tmp_path: Path, network: Network, way: str) -> None:
    job = make_job(tmp_path, "handle_stops", "wait=600")
    launcher = launcher_of(job, "ssh", *cluster(network))
    wait_for("processes", are_waiting(job, 2))
    if way == "cancel":
        request_stop(Path(job.run_dir))
    else:
        launcher.send_signal(signal.SIGUSR1)
    assert launcher.wait(timeout=60) == 75
    wait_for("end of all processes", lambda: processes_of(job) == [])
    assert read_record(Path(job.run_dir))["code"] == 75


@pytest.mark.processes
def test_a_run_goes_on_without_its_launcher_and_is_cancelled(tmp_path: Path, network: Network) -> None:
    job = make_job(tmp_path, "handle_stops", "wait=600")
    run_dir = Path(job.run_dir)
    launcher = launcher_of(job, "ssh", *cluster(network))
    wait_for("processes", are_waiting(job, 2))
    before = processes_of(job)
    launcher.kill()
    launcher.wait(timeout=60)
    code, output = run_launcher(job, "ssh", *cluster(network))
    assert code == 1 and "is running it already" in output
    assert processes_of(job) == before and is_locked(run_dir)
    request_stop(run_dir)
    wait_for("end of the run", lambda: read_record(run_dir)["state"] == "ended")
    assert read_record(run_dir)["code"] == 75 and processes_of(job) == []


@pytest.mark.nightly
@pytest.mark.processes
def test_an_unreachable_host_is_named(tmp_path: Path, network: Network) -> None:
    job = make_job(tmp_path, "exit=0")
    name = network.hosts[1].name
    nobody = f"{name.rpartition('.')[0]}.77"
    rest = cluster(network)[1:]
    code, output = run_launcher(job, "ssh", f"hosts={{{name}: 1, {nobody}: 1}}", *rest)
    assert (
        code == 1
        and f"{nobody} is unreachable (" in output
        and "allow fewer hosts with min_nodes=N" in output
    )
    code, output = run_launcher(job, "ssh", f"hosts={{{name}: 1, {nobody}: 1}}", *rest, "min_nodes=1")
    assert code == 0 and f"continuing without {nobody}" in output


@pytest.mark.processes
def test_a_host_that_does_not_see_the_code_is_named(tmp_path: Path, network: Network) -> None:
    job = make_job(tmp_path, "exit=0")
    os.rename(job.code, f"{job.code}-elsewhere")
    code, output = run_launcher(job, "ssh", *cluster(network))
    assert code == 1 and f"{network.hosts[0].name} is unreachable (" in output and "No such file" in output


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], "hosts must contain processes by host, as in 'hosts={a: 8, b: 8}', got {}"),
        (["hosts.-oProxyCommand=1"], "hosts must contain host names or addresses, got '-oProxyCommand'"),
        (["hosts={a b: 1}"], "got 'a b'"),
        (["hosts.a=0"], "hosts.a must be at least 1, got 0"),
        (["hosts.a=1", "min_nodes=2"], "min_nodes must be 1 to 1, the number of hosts, got 2"),
        (["hosts.a=1", "master_port=70000"], "master_port must be a port, got 70000"),
        (["hosts.a=1", "heartbeat_timeout_s=2"], "heartbeat_timeout_s must be at least 5"),
        (
            ["hosts.a=1", "host_wait_s=1e10"],
            "host_wait_s must be at least 0.1 and at most 1e8 seconds, got 1",
        ),
        (["hosts.a=1", "max_restarts=-1"], "max_restarts must be 0 or more"),
    ],
)
def test_a_wrong_cluster_is_refused_by_key(overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_cluster(SshCluster, None, overrides)
