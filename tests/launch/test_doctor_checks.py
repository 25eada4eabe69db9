"""The doctor's checks on made-up reports, for faults that cannot be produced on this machine."""

import tomllib
from pathlib import Path
from typing import Any

import pytest

from kinemae.launch.doctor.checks import folders, network
from kinemae.launch.doctor.checks.group import check_group
from kinemae.launch.doctor.checks.network import Connection
from kinemae.launch.doctor.checks.versions import GIB, PACKAGES, check_machines, check_paths, check_versions
from kinemae.launch.doctor.results import CheckResult, as_json, as_text, join_names, odd_ones


def machine(**changes: Any) -> dict[str, Any]:
    """The report of a machine with no problem."""
    return {
        "python": "3.11.7",
        "executable": "/env/bin/python",
        "packages": {package: "1.0" for package in PACKAGES},
        "cores": 16,
        "memory_bytes": 64 * GIB,
        "shared_memory_bytes": 32 * GIB,
        "open_files": 65536,
        "locked_bytes": None,
        "environment": {},
        "missing": [],
        **changes,
    }


def three(odd: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Two equal machines and another one."""
    return {"a": machine(), "b": machine(), "c": odd}


def only(results: list[CheckResult], level: str) -> CheckResult:
    """Return the only result that is not ok; it has this level and a fix."""
    bad = [result for result in results if result.level != "ok"]
    assert [result.level for result in bad] == [level], results
    assert bad[0].fix
    return bad[0]


def is_ok(results: list[CheckResult]) -> bool:
    return [result.level for result in results] == ["ok"]


def test_the_compared_packages_are_the_dependencies_of_kinemae(repo: Path) -> None:
    project = tomllib.loads((repo / "pyproject.toml").read_text())["project"]
    needed = [*project["dependencies"], *project["optional-dependencies"]["train"]]
    assert set(PACKAGES) == {text.split(">")[0] for text in needed}


def test_equal_machines_pass() -> None:
    assert is_ok(check_versions(three(machine())))


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
    result = only(check_versions(three(machine(**changes))), level)
    assert says in result.text
    assert result.nodes == ("c",)


@pytest.mark.parametrize(
    ("changes", "has_gpus", "says"),
    [
        ({"cores": 2}, False, "c has 2 cores for 4 processes"),
        ({"memory_bytes": 3 * GIB}, False, "c has 3.0 GiB of free memory for 4 processes"),
        ({"open_files": 1024}, False, "c allows 1024 open files per process (ulimit -Hn)"),
        ({"locked_bytes": 8 << 20}, True, "c allows 8192 KiB of locked memory (ulimit -l)"),
        ({"shared_memory_bytes": 64 << 20}, True, "c has 64 MiB in /dev/shm"),
    ],
)
def test_a_machine_that_is_too_small_is_reported(changes: dict[str, Any], has_gpus: bool, says: str) -> None:
    processes = dict.fromkeys("abc", 4)
    result = only(check_machines(three(machine(**changes)), processes, has_gpus), "warning")
    assert says in result.text


def test_limits_that_only_gpus_need_are_ignored_without_gpus() -> None:
    small = machine(locked_bytes=65536, shared_memory_bytes=64 << 20)
    assert is_ok(check_machines(three(small), dict.fromkeys("abc", 4), has_gpus=False))


def test_a_folder_of_the_job_that_a_node_lacks_is_named() -> None:
    result = only(check_paths(three(machine(missing=["/home/me"])), ["/home/me", "/data"]), "error")
    assert result.text == "there is no /home/me on c"


# --- the network


def connection(source: str, target: str, *, is_master: bool = True, **result: Any) -> Connection:
    values = result or {"address": f"10.0.0.{target}", "from": f"10.0.0.{source}", "ms": 1.0}
    return Connection(
        source=source, target=target, host=f"10.0.0.{target}", port=29500, is_master=is_master, result=values
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
    ("failed", "fix"),
    [
        ("unresolved", "that every node can resolve"),
        ("unresolved", "set `master_addr`"),
        ("no reply", "open all TCP ports"),
        ("refused", "open all TCP ports"),
        ("another service", "another `master_port`"),
        ("Network is unreachable", "correct the route between 2 and 1"),
    ],
)
def test_a_connection_that_fails_is_named_with_both_ends(failed: str, fix: str) -> None:
    connections = [
        connection("2", "1", failed=failed),
        connection("3", "1", failed=failed),
        connection("4", "1"),
    ]
    result = only(network.check_connections(connections), "error")
    assert result.text == f"2, 3 cannot connect to 1 as 10.0.0.1, rendezvous port 29500: {failed}"
    assert fix in result.fix


def test_a_port_that_is_taken_is_named() -> None:
    assert is_ok(network.check_master_port("a", 29500, None))
    result = only(network.check_master_port("a", 29500, "Address already in use"), "error")
    assert "port 29500 is not available on a: Address already in use" in result.text
    assert "ss -ltnp" in result.fix


def route(second: dict[str, Any], environment: dict[str, str]) -> list[CheckResult]:
    networks = {"1": network_of("1"), "2": second}
    environments = {"1": environment, "2": environment}
    return network.check_interfaces(networks, [connection("2", "1")], environments)


def test_one_interface_that_leads_to_the_others_is_ok() -> None:
    assert is_ok(route(network_of("2"), {}))


def test_no_route_passes_if_nothing_connects() -> None:
    networks = {name: network_of(name) for name in ("1", "2")}
    failed = [connection("2", "1", failed="unresolved")]
    assert network.check_interfaces(networks, failed, {"1": {}, "2": {}}) == []


def test_a_hostname_that_resolves_to_the_loopback_is_an_error() -> None:
    loopback = network_of("2", own_address="127.0.1.1")
    result = only(route(loopback, {}), "error")
    assert "the hostname node2 of 2 resolves to 127.0.1.1 there" in result.text
    assert "environment.GLOO_SOCKET_IFNAME=eth0" in result.fix
    assert is_ok(route(loopback, {"GLOO_SOCKET_IFNAME": "eth0"}))


def test_several_interfaces_are_a_warning_until_one_is_chosen() -> None:
    storage = {"name": "ib0", "addresses": ["10.9.0.2"], "gbit": 200.0, "is_virtual": False}
    several = network_of("2")
    several["interfaces"] = [*several["interfaces"], storage]
    result = only(route(several, {}), "warning")
    assert "2 reaches the others through eth0 and also has ib0" in result.text
    assert is_ok(route(several, {"NCCL_SOCKET_IFNAME": "eth0"}))


def test_an_interface_that_is_not_there_is_an_error() -> None:
    results = route(network_of("2"), {"NCCL_SOCKET_IFNAME": "=ib7", "GLOO_SOCKET_IFNAME": "eth0"})
    assert {result.level for result in results} == {"error"}
    assert "NCCL_SOCKET_IFNAME names ib7, but 2 has only lo, eth0" in results[1].text


def test_the_link_is_as_fast_as_its_slowest_end() -> None:
    slow = network_of("2")
    slow["interfaces"][1]["gbit"] = 1.0
    assert network.link_gbit({"1": network_of("1"), "2": slow}, [connection("2", "1")]) == 1.0
    slow["interfaces"][1]["gbit"] = None
    assert network.link_gbit({"1": network_of("1"), "2": slow}, [connection("2", "1")]) is None


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
        **changes,
    }


def test_a_group_whose_sums_are_right_and_fast_is_ok() -> None:
    results = check_group({"a": [rank()], "b": [rank()]}, "gloo", 10.0)
    assert [result.level for result in results] == ["ok", "ok"]
    assert results[1].text == "all-reduce: 1000 MB/s, 80 % of a link of 10 Gbit/s"


@pytest.mark.parametrize(
    ("backend", "gbit", "nodes", "says"),
    [
        ("nccl", 200.0, "ab", "4 % of a link of 200 Gbit/s; expected at least 50 %"),
        ("gloo", 200.0, "ab", "4 % of a link of 200 Gbit/s; expected at least 10 %"),
    ],
)
def test_a_slow_link_is_a_warning(backend: str, gbit: float, nodes: str, says: str) -> None:
    assert says in only(check_group({node: [rank()] for node in nodes}, backend, gbit), "warning").text


def test_one_machine_is_compared_with_its_memory() -> None:
    ranks = {"a": [rank(bus_mb_per_s=50.0), rank()]}
    result = only(check_group(ranks, "gloo", None), "warning")
    assert "0 % of memory copies at 10000 MB/s" in result.text


def test_wrong_sums_name_the_sender() -> None:
    wrong = {"wrong": "3 of 1000 values of torch.int64 are wrong", "wrong_from": [2]}
    ranks = {"a": [rank(**wrong), rank(**wrong)], "b": [rank(**{**wrong, "wrong_from": []})]}
    result = only(check_group(ranks, "gloo", None), "error")
    assert "values sent by b arrive changed" in result.text
    assert result.nodes == ("b",)


def test_the_ranks_that_stopped_first_are_named() -> None:
    waited = rank(stage="joining", failed="not done after 45 s")
    crashed = {
        "stage": "starting",
        "failed": "ended with exit code 1: Traceback\nImportError: libcudart.so.13",
    }
    result = only(check_group({"a": [waited], "b": [crashed]}, "gloo", None), "error")
    assert "the group stopped at importing torch on b" in result.text
    assert "ImportError: libcudart.so.13" in result.text


def test_a_crash_comes_before_ranks_that_waited_for_it() -> None:
    waited = rank(stage="joining", failed="not done after 45 s")
    crashed = rank(stage="joining", failed="ended with exit code -11: ")
    result = only(check_group({"a": [waited], "b": [crashed]}, "gloo", None), "error")
    assert result.nodes == ("b",)


def test_another_build_of_torch_is_an_error() -> None:
    results = check_group({"a": [rank()], "b": [rank()], "c": [rank(nccl="2.20.5")]}, "nccl", None)
    assert "torch on c has nccl 2.20.5, and None on the other nodes" in only(results, "error").text


# --- folders


def written(**changes: Any) -> dict[str, Any]:
    return {"sync_ms": 2.0, "free_bytes": 100 * GIB, "kind": "nfs4", **changes}


@pytest.mark.parametrize(
    ("report", "level", "says", "fix"),
    [
        (
            {"failed": "ENOENT", "reason": "No such file or directory"},
            "error",
            "c cannot write to /runs: No",
            "mount",
        ),
        ({"failed": "EROFS", "reason": "Read-only file system"}, "error", "c cannot write", "writable"),
        (
            {"failed": "ENOSPC", "reason": "No space left on device"},
            "error",
            "No space left",
            "free some space",
        ),
        (written(sync_ms=900.0), "warning", "c takes 900 ms to sync 64 KiB", "faster file system"),
        (
            written(free_bytes=GIB),
            "error",
            "1.0 GiB free, the kept checkpoints need 20.0 GiB",
            "free",
        ),
        (written(kind="tmpfs"), "warning", "/runs is a tmpfs on c", "permanent"),
    ],
)
def test_a_folder_that_cannot_be_used_is_named(
    report: dict[str, Any], level: str, says: str, fix: str
) -> None:
    reports = {"a": written(), "b": written(), "c": report}
    result = only(folders.check_written("/runs", reports, 20 * GIB), level)
    assert says in result.text
    assert fix in result.fix


def test_a_folder_that_is_not_shared_is_named_with_both_nodes() -> None:
    result = only(folders.check_shared("/runs", {"a": {"b": "missing"}, "b": {}}, 2), "error")
    assert result.text == "a does not see the file that b wrote to /runs"
    assert result.nodes == ("a", "b")


def test_locks_that_do_not_hold_across_nodes_are_a_warning() -> None:
    assert is_ok(folders.check_locks("/runs", {"a": "locked", "b": "busy"}))
    loose = only(folders.check_locks("/runs", {"a": "locked", "b": "locked"}), "warning")
    assert "b could take a lock in /runs that a holds" in loose.text
    refused = only(folders.check_locks("/runs", {"a": "Function not implemented", "b": "busy"}), "warning")
    assert "cannot be locked on a: Function not implemented" in refused.text


def test_shards_with_other_bytes_on_one_node_are_an_error() -> None:
    same = {"digest": "x", "mb_per_s": 100.0}
    reports = {"a": same, "b": same, "c": {**same, "digest": "y"}}
    assert (
        "the content of /shards on c differs" in only(folders.check_shards("/shards", reports), "error").text
    )
    gone = {"a": same, "c": {"failed": "No such file or directory: /shards/dataset.json"}}
    assert "c cannot read /shards" in folders.check_shards("/shards", gone)[0].text


# --- results


def test_the_odd_ones_are_those_that_differ_from_most() -> None:
    assert odd_ones({"a": 1, "b": 2, "c": 2, "d": 3}) == (2, {1: ["a"], 3: ["d"]})
    assert odd_ones({"a": 1, "b": 2}) == (1, {2: ["b"]})


def test_many_nodes_are_named_by_the_first_few() -> None:
    assert join_names([f"n{number}" for number in range(9)]) == "n0, n1, n2, n3, n4, n5 and 3 more"


def test_results_are_printed_with_their_fixes_and_counted() -> None:
    results = [
        CheckResult(level="ok", check="port", text="fine"),
        CheckResult(level="error", check="folder", text="gone " * 30, fix="mount it", nodes=("a",)),
    ]
    printed = as_text(results, 2, 12.3)
    assert printed.splitlines()[0] == "ok       port      fine"
    assert "                   fix: mount it" in printed
    assert printed.endswith("1 error, 0 warnings on 2 nodes in 12 s\n")
    assert max(map(len, printed.splitlines())) <= 110
    report = as_json(results, {"a": {}}, 12.3)
    assert (report["errors"], report["warnings"], report["results"][1]["nodes"]) == (1, 0, ("a",))
