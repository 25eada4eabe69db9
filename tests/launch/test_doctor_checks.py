"""What the doctor makes of reports: made-up ones, for everything that cannot be broken on this machine."""

import tomllib
from pathlib import Path
from typing import Any

import pytest

from kinemae.launch.doctor.checks import folders, network
from kinemae.launch.doctor.checks.findings import Finding, as_json, as_text, named, odd_ones
from kinemae.launch.doctor.checks.group import check_group
from kinemae.launch.doctor.checks.machine import GIB, check_clocks, check_machines, check_paths
from kinemae.launch.doctor.checks.network import Attempt
from kinemae.launch.doctor.checks.unreachable import mend_of
from kinemae.launch.doctor.checks.versions import (
    PACKAGES,
    check_build_locks,
    check_code,
    check_environment,
    check_versions,
)


def machine(**changes: Any) -> dict[str, Any]:
    """The report of a machine with nothing to mend."""
    return {
        "python": "3.11.7",
        "executable": "/env/bin/python",
        "packages": {package: "1.0" for package in PACKAGES},
        "code": "abc",
        "cores": 16,
        "memory_bytes": 64 * GIB,
        "shared_memory_bytes": 32 * GIB,
        "open_files": 65536,
        "locked_bytes": None,
        "environment": {},
        "build_locks": [],
        **changes,
    }


def three(odd: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Two sound machines and an odd one."""
    return {"a": machine(), "b": machine(), "c": odd}


def only(findings: list[Finding], level: str) -> Finding:
    """The one finding that is not ok, of that level, with a mend."""
    bad = [finding for finding in findings if finding.level != "ok"]
    assert [finding.level for finding in bad] == [level], findings
    assert bad[0].mend
    return bad[0]


def is_well(findings: list[Finding]) -> bool:
    return [finding.level for finding in findings] == ["ok"]


def test_the_packages_compared_are_those_that_kinemae_needs(repo: Path) -> None:
    project = tomllib.loads((repo / "pyproject.toml").read_text())["project"]
    assert set(PACKAGES) == {text.split(">")[0] for text in project["dependencies"]}


@pytest.mark.parametrize("check", [check_versions, check_code, check_environment, check_build_locks])
def test_equal_machines_are_well(check: Any) -> None:
    assert is_well(check(three(machine())))


@pytest.mark.parametrize(
    ("changes", "level", "says"),
    [
        ({"python": "3.12.1"}, "error", "python is 3.12.1 on c, and 3.11.7 on the other nodes"),
        ({"packages": machine()["packages"] | {"torch": "2.0"}}, "error", "torch is 2.0 on c, and 1.0"),
        ({"packages": machine()["packages"] | {"numpy": "2.0"}}, "warning", "numpy is 2.0 on c, and 1.0"),
        (
            {"packages": machine()["packages"] | {"deepspeed": None}},
            "error",
            "deepspeed is not installed on c",
        ),
    ],
)
def test_another_version_is_named_with_its_node(changes: dict[str, Any], level: str, says: str) -> None:
    finding = only(check_versions(three(machine(**changes))), level)
    assert says in finding.text
    assert finding.nodes == ("c",)


def test_other_code_is_a_warning_and_none_is_no_fault() -> None:
    assert "on c is other, and abc" in only(check_code(three(machine(code="other"))), "warning").text
    assert is_well(check_code(three(machine(code=None))))
    assert is_well(check_code({"a": machine(code=None)}))


def test_a_variable_that_differs_or_lacks_is_named() -> None:
    machines = {node: machine(environment={"NCCL_DEBUG": "INFO"}) for node in "ab"}
    machines |= {"c": machine()}
    finding = only(check_environment(machines), "warning")
    assert finding.text == "NCCL_DEBUG is (unset) on c, and INFO on the other nodes"
    assert "`environment` in the cluster file" in finding.mend


def test_a_lock_of_a_killed_build_is_named_with_the_way_to_remove_it() -> None:
    lock = {"path": "/root/.cache/torch_extensions/x/lock", "age_s": 7200.0}
    finding = only(check_build_locks(three(machine(build_locks=[lock]))), "warning")
    assert "120 minutes old" in finding.text
    assert "have been killed" in finding.text
    assert "rm /root/.cache/torch_extensions/x/lock" in finding.mend


@pytest.mark.parametrize(
    ("changes", "has_gpus", "says"),
    [
        ({"cores": 2}, False, "c offers 2 cores to 4 processes"),
        ({"memory_bytes": 3 * GIB}, False, "c has 3.0 GiB of memory left for 4 processes"),
        ({"open_files": 1024}, False, "c allows 1024 open files a process (ulimit -n)"),
        ({"locked_bytes": 8 << 20}, True, "c lets a process lock 8192 KiB of memory (ulimit -l)"),
        ({"shared_memory_bytes": 64 << 20}, True, "/dev/shm of c holds 64 MiB"),
    ],
)
def test_a_machine_that_is_too_small_is_named(changes: dict[str, Any], has_gpus: bool, says: str) -> None:
    processes = dict.fromkeys("abc", 4)
    finding = only(check_machines(three(machine(**changes)), processes, has_gpus), "warning")
    assert says in finding.text


def test_limits_that_only_gpus_need_are_not_asked_of_a_cpu() -> None:
    small = machine(locked_bytes=65536, shared_memory_bytes=64 << 20)
    assert is_well(check_machines(three(small), dict.fromkeys("abc", 4), has_gpus=False))


@pytest.mark.parametrize(
    ("ahead_s", "level", "says"),
    [(5.0, "warning", "c is 5.0 s ahead of"), (-4000.0, "error", "c is 4000.0 s behind")],
)
def test_a_clock_that_is_off_is_named(ahead_s: float, level: str, says: str) -> None:
    assert says in only(check_clocks({"a": 0.0, "b": 0.01, "c": ahead_s}), level).text


def test_clocks_within_a_second_are_well() -> None:
    assert is_well(check_clocks({"a": 0.0, "b": 0.4, "c": -0.4}))


def test_a_folder_of_the_job_that_a_node_lacks_is_named() -> None:
    finding = only(check_paths({"/home/me": ["c"], "/data": []}), "error")
    assert finding.text == "c has no /home/me"


# --- the network


def attempt(source: str, target: str, *, is_master: bool = True, **result: Any) -> Attempt:
    said = result or {"address": f"10.0.0.{target}", "from": f"10.0.0.{source}", "ms": 1.0}
    return Attempt(
        source=source, target=target, host=f"10.0.0.{target}", port=29500, is_master=is_master, result=said
    )


def network_of(number: str, **changes: Any) -> dict[str, Any]:
    interface = {"name": "eth0", "addresses": [f"10.0.0.{number}"], "gbit": 100.0, "is_virtual": False}
    loopback = {"name": "lo", "addresses": ["127.0.0.1"], "gbit": None, "is_virtual": True}
    usual = {
        "hostname": f"node{number}",
        "own_address": f"10.0.0.{number}",
        "interfaces": [loopback, interface],
    }
    return {**usual, **changes}


@pytest.mark.parametrize(
    ("failed", "mend"),
    [
        ("unresolved", "that every node can resolve"),
        ("unresolved", "set `master_addr`"),
        ("no answer", "open all TCP ports"),
        ("refused", "open all TCP ports"),
        ("another service", "another `master_port`"),
        ("Network is unreachable", "mend the route between 2 and 1"),
    ],
)
def test_a_connection_that_fails_is_named_with_both_ends(failed: str, mend: str) -> None:
    attempts = [attempt("2", "1", failed=failed), attempt("3", "1", failed=failed), attempt("4", "1")]
    finding = only(network.check_connections(attempts), "error")
    assert finding.text == f"2, 3 cannot connect to 1 as 10.0.0.1, port 29500, where ranks meet: {failed}"
    assert mend in finding.mend


def test_a_port_that_is_taken_is_named() -> None:
    assert is_well(network.check_master_port("a", 29500, None))
    finding = only(network.check_master_port("a", 29500, "Address already in use"), "error")
    assert "port 29500 cannot be had on a: Address already in use" in finding.text
    assert "ss -ltnp" in finding.mend


def route(second: dict[str, Any], environment: dict[str, str], *, has_gpus: bool = False) -> list[Finding]:
    networks = {"1": network_of("1"), "2": second}
    environments = {"1": environment, "2": environment}
    return network.check_interfaces(networks, [attempt("2", "1")], environments, has_gpus)


def test_one_interface_that_leads_to_the_others_is_well() -> None:
    assert is_well(route(network_of("2"), {}))


def test_no_route_is_called_well_where_nothing_connects() -> None:
    networks = {name: network_of(name) for name in ("1", "2")}
    failed = [attempt("2", "1", failed="unresolved")]
    assert network.check_interfaces(networks, failed, {"1": {}, "2": {}}, False) == []


def test_a_hostname_that_means_the_loopback_is_an_error_of_gloo_alone() -> None:
    loopback = network_of("2", own_address="127.0.1.1")
    finding = only(route(loopback, {}), "error")
    assert "the hostname of 2, node2, means 127.0.1.1 there" in finding.text
    assert "GLOO_SOCKET_IFNAME: eth0" in finding.mend
    assert is_well(route(loopback, {"GLOO_SOCKET_IFNAME": "eth0"}))
    assert is_well(route(loopback, {}, has_gpus=True))


def test_several_interfaces_are_a_warning_until_one_is_chosen() -> None:
    storage = {"name": "ib0", "addresses": ["10.9.0.2"], "gbit": 200.0, "is_virtual": False}
    several = network_of("2")
    several["interfaces"] = [*several["interfaces"], storage]
    finding = only(route(several, {}), "warning")
    assert "2 reaches the others through eth0 and also has ib0" in finding.text
    assert is_well(route(several, {"NCCL_SOCKET_IFNAME": "eth0"}))


def test_an_interface_that_is_not_there_is_an_error() -> None:
    findings = route(network_of("2"), {"NCCL_SOCKET_IFNAME": "=ib7", "GLOO_SOCKET_IFNAME": "eth0"})
    assert {finding.level for finding in findings} == {"error"}
    assert "NCCL_SOCKET_IFNAME names ib7, and 2 has only lo, eth0" in findings[1].text


def test_the_link_is_as_fast_as_its_slowest_end() -> None:
    slow = network_of("2")
    slow["interfaces"][1]["gbit"] = 1.0
    assert network.link_gbit({"1": network_of("1"), "2": slow}, [attempt("2", "1")]) == 1.0
    slow["interfaces"][1]["gbit"] = None
    assert network.link_gbit({"1": network_of("1"), "2": slow}, [attempt("2", "1")]) is None


# --- the group


def rank(**changes: Any) -> dict[str, Any]:
    return {
        "stage": "done",
        "torch": "2.15.0",
        "cuda": None,
        "nccl": None,
        "wrong": None,
        "wrong_from": [],
        "copy_mb_per_s": 10000.0,
        "bus_mb_per_s": 1000.0,
        "pairs": {},
        **changes,
    }


def test_a_group_whose_sums_are_right_and_fast_is_well() -> None:
    findings = check_group({"a": [rank()], "b": [rank()]}, "gloo", 10.0)
    assert [finding.level for finding in findings] == ["ok", "ok"]
    assert findings[1].text == "all-reduce: 1000 MB/s, 80 % of a link of 10 Gbit/s"


@pytest.mark.parametrize(
    ("backend", "gbit", "nodes", "says"),
    [
        ("nccl", 200.0, "ab", "4 % of a link of 200 Gbit/s; at least 50 % were expected"),
        ("gloo", 200.0, "ab", "4 % of a link of 200 Gbit/s; at least 10 % were expected"),
    ],
)
def test_a_slow_link_is_a_warning(backend: str, gbit: float, nodes: str, says: str) -> None:
    assert says in only(check_group({node: [rank()] for node in nodes}, backend, gbit), "warning").text


def test_one_machine_is_held_against_its_memory() -> None:
    ranks = {"a": [rank(bus_mb_per_s=50.0), rank()]}
    finding = only(check_group(ranks, "gloo", None), "warning")
    assert "0 % of memory copies at 10000 MB/s" in finding.text


def test_the_node_all_of_whose_pairs_are_slow_is_the_slow_one() -> None:
    pairs = {"a": {"1": 1000.0, "2": 90.0}, "b": {"0": 1000.0, "2": 95.0}, "c": {"0": 90.0, "1": 95.0}}
    ranks = {node: [rank(pairs=rates)] for node, rates in pairs.items()}
    finding = only(check_group(ranks, "gloo", None), "warning")
    assert "c exchanges at most 95 MB/s with any other node, the others 1000 MB/s" in finding.text


def test_wrong_sums_name_the_node_whose_values_arrive_changed() -> None:
    wrong = {"wrong": "3 of 1000 values of torch.int64 are wrong", "wrong_from": [2]}
    ranks = {"a": [rank(**wrong), rank(**wrong)], "b": [rank(**{**wrong, "wrong_from": []})]}
    finding = only(check_group(ranks, "gloo", None), "error")
    assert "what b sent arrives changed" in finding.text
    assert finding.nodes == ("b",)


def test_of_ranks_that_did_not_finish_the_ones_that_got_least_far_are_named() -> None:
    waited = rank(stage="joining", failed="not done after 45 s")
    crashed = {
        "stage": "starting",
        "failed": "left with exit code 1: Traceback\nImportError: libcudart.so.13",
    }
    finding = only(check_group({"a": [waited], "b": [crashed]}, "gloo", None), "error")
    assert "did not get past importing torch on b" in finding.text
    assert "ImportError: libcudart.so.13" in finding.text


def test_a_crash_comes_before_those_who_waited_for_it() -> None:
    waited = rank(stage="joining", failed="not done after 45 s")
    crashed = rank(stage="joining", failed="left with exit code -11: ")
    finding = only(check_group({"a": [waited], "b": [crashed]}, "gloo", None), "error")
    assert finding.nodes == ("b",)


def test_another_build_of_torch_is_an_error() -> None:
    findings = check_group({"a": [rank()], "b": [rank()], "c": [rank(nccl="2.20.5")]}, "nccl", None)
    assert "torch on c brings nccl 2.20.5, and None on the other nodes" in only(findings, "error").text


# --- folders


def written(**changes: Any) -> dict[str, Any]:
    return {"sync_ms": 2.0, "free_bytes": 100 * GIB, "kind": "nfs4", **changes}


@pytest.mark.parametrize(
    ("report", "level", "says", "mend"),
    [
        (
            {"failed": "ENOENT", "why": "No such file or directory"},
            "error",
            "c cannot write to /runs: No",
            "mount",
        ),
        ({"failed": "EROFS", "why": "Read-only file system"}, "error", "c cannot write", "for writing"),
        ({"failed": "ENOSPC", "why": "No space left on device"}, "error", "No space left", "free some space"),
        (written(sync_ms=900.0), "warning", "c takes 900 ms to write 64 KiB through", "faster file system"),
        (
            written(free_bytes=GIB),
            "error",
            "1.0 GiB free, the checkpoints that are kept take 20.0 GiB",
            "free",
        ),
        (written(kind="tmpfs"), "warning", "/runs is a tmpfs on c", "stays"),
    ],
)
def test_a_folder_that_cannot_be_used_is_named(
    report: dict[str, Any], level: str, says: str, mend: str
) -> None:
    reports = {"a": written(), "b": written(), "c": report}
    finding = only(folders.check_written("/runs", reports, 20 * GIB), level)
    assert says in finding.text
    assert mend in finding.mend


def test_a_folder_that_is_not_shared_is_named_with_who_wrote_and_who_looked() -> None:
    finding = only(folders.check_shared("/runs", {"a": {"b": "missing"}, "b": {}}, 2), "error")
    assert finding.text == "a does not see what b wrote to /runs"
    assert finding.nodes == ("a", "b")


def test_locks_that_do_not_hold_across_nodes_are_a_warning() -> None:
    assert is_well(folders.check_locks("/runs", {"a": "mine", "b": "taken"}))
    loose = only(folders.check_locks("/runs", {"a": "mine", "b": "mine"}), "warning")
    assert "a lock in /runs that a holds was given to b too" in loose.text
    refused = only(folders.check_locks("/runs", {"a": "Function not implemented", "b": "taken"}), "warning")
    assert "cannot be locked on a: Function not implemented" in refused.text


def test_shards_with_other_bytes_on_one_node_are_an_error() -> None:
    same = {"digest": "x", "mb_per_s": 100.0}
    reports = {"a": same, "b": same, "c": {**same, "digest": "y"}}
    assert "c finds other bytes in /shards" in only(folders.check_shards("/shards", reports), "error").text
    gone = {"a": same, "c": {"failed": "No such file or directory: /shards/dataset.json"}}
    assert "c cannot read /shards" in folders.check_shards("/shards", gone)[0].text


def test_a_node_that_decodes_slowly_or_not_at_all_is_named() -> None:
    rates = {"a": {"clips_per_s": 40.0}, "b": {"clips_per_s": 42.0}, "c": {"clips_per_s": 4.0}}
    assert "a core of c reads 4.0 clips/s" in only(folders.check_decoding("/shards", rates), "warning").text
    broken = {"a": {"clips_per_s": 40.0}, "c": {"failed": "crc32 of KEY differs"}}
    assert "crc32 of KEY differs" in folders.check_decoding("/shards", broken)[0].text
    slow = {"a": {"clips_per_s": 40.0}, "c": {"slow": "32 clips took more than 30 s"}}
    assert "c is too slow to measure" in only(folders.check_decoding("/shards", slow), "warning").text
    assert "not measured" in folders.check_decoding("/shards", {"a": {"absent": True}})[0].text


# --- what is said of silence, and how all of it is printed


@pytest.mark.parametrize(
    ("question", "words", "mend"),
    [
        ("start", "root@n1: Permission denied (publickey).", "ssh-copy-id n1"),
        ("start", "ssh: Could not resolve hostname n1: Name or service not known", "correct the name"),
        ("start", "ssh: connect to host n1 port 22: Connection refused", "start sshd"),
        ("start", "ssh: connect to host n1 port 22: No route to host", "look at the link"),
        ("start", "bash: line 1: /opt/python: No such file or directory", "set `python`"),
        ("start", "srun: error: invalid partition specified: gpu", "correct `partition`"),
        ("start", "srun: error: You must specify an account (--account)", "set `account`"),
        ("start", "srun: error: Unable to allocate resources: Requested time limit is invalid", "set `time`"),
        ("start", "srun: error: Unable to allocate resources: Invalid qos specification", "correct `qos`"),
        ("start", "srun: error: Unable to allocate resources: Unspecified error", "correct `account`"),
        ("queue", "no answer within 120 s; job 7 is PENDING because of Resources", "leave a node out"),
        ("python", "3.8.10", "Python 3.11 or newer"),
        ("write", "no answer within 15 s", "a network file system hangs"),
    ],
)
def test_last_words_have_a_mend(question: str, words: str, mend: str) -> None:
    assert mend in mend_of("n1", question, words)


def test_the_odd_ones_are_those_that_differ_from_most() -> None:
    assert odd_ones({"a": 1, "b": 2, "c": 2, "d": 3}) == (2, {1: ["a"], 3: ["d"]})
    assert odd_ones({"a": 1, "b": 2}) == (1, {2: ["b"]})


def test_many_nodes_are_named_by_the_first_few() -> None:
    assert named([f"n{number}" for number in range(9)]) == "n0, n1, n2, n3, n4, n5 and 3 more"


def test_findings_are_printed_with_their_mends_and_counted() -> None:
    findings = [
        Finding(level="ok", check="clock", text="fine"),
        Finding(level="error", check="folder", text="gone " * 30, mend="mount it", nodes=("a",)),
    ]
    printed = as_text(findings, 2, 12.3)
    assert printed.splitlines()[0] == "ok       clock     fine"
    assert "                   mend: mount it" in printed
    assert printed.endswith("1 error, 0 warnings on 2 nodes in 12 s\n")
    assert max(map(len, printed.splitlines())) <= 110
    told = as_json(findings, {"a": {}}, 12.3)
    assert (told["errors"], told["warnings"], told["findings"][1]["nodes"]) == (1, 0, ("a",))
