"""The doctor's checks on made-up reports."""

import copy
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kinemae.launch.doctor.checks import PACKAGES, Result, as_text, evaluate, join_names

Report = dict[str, Any]


def node(number: int) -> Report:
    """The report of a node with two GPUs and no problem."""
    measured = {"wrong": None, "mb_per_s": 1000.0}
    gpu = {"gpus": 2, "gpu": "NVIDIA H100 80GB HBM3"}
    rank = {"stage": "done", "build": "torch 2.15.0, NCCL 2.27", **gpu, "gloo": measured}
    return {
        "stage": "done",
        "host": {
            "name": "abc"[number],
            "hostname": f"node{number}",
            "versions": {"python": "3.11.7", **dict.fromkeys(PACKAGES, "1.0")},
            "executable": "/env/bin/python",
            "gpus": 2,
            "machine": str(number),
            "has_interface": False,
            "own_address": f"10.0.0.{number}",
        },
        "folder": {"free_bytes": 10**11 + number},
        "shards": {"/shards": {"fingerprint": "x"}},
        "group": {"ranks": [copy.deepcopy(rank), copy.deepcopy(rank)]},
        "seen": ["node-0", "node-1", "node-2"],
    }


def results_of(change: Callable[[Report], Any]) -> list[Result]:
    """The problems of three nodes after a change of the last one, and the summary."""
    reports = {name: node(number) for number, name in enumerate("abc")}
    change(reports["c"])
    return evaluated(reports)


def evaluated(reports: dict[str, Report], processes: int = 2) -> list[Result]:
    files = [f"node-{number}" for number in range(len(reports))]
    return evaluate(reports, dict.fromkeys(reports, processes), run_dir="/runs", seen_here=files)


def only(results: list[Result]) -> Result:
    """The only problem; it has a fix."""
    assert [result.level for result in results[1:]] == ["ok"], results
    assert results[0].fix
    return results[0]


def test_equal_nodes_pass_with_a_summary() -> None:
    [summary] = results_of(lambda report: None)
    assert summary.text == (
        "3 of 3 nodes reported; python 3.11.7, torch 1.0; 6 GPUs, NVIDIA H100 80GB HBM3; 6 of 6 processes "
        "formed a group; all-reduce 1000 MB/s with gloo; 100 GB free for the run"
    )


def put(*path: Any) -> Callable[[Report], None]:
    """Set the value, which comes last, at a path of keys."""
    *keys, last, value = path

    def change(report: Report) -> None:
        place: Any = report
        for key in keys:
            place = place[key]
        place[last] = value

    return change


CASES = [
    (
        put("host", "versions", "python", "3.12.1"),
        "version",
        "python is 3.12.1 on c, and 3.11.7 on the other",
    ),
    (put("host", "versions", "python", "3.8.10"), "version", "python is 3.8.10 on c, below 3.11"),
    (put("host", "versions", "torch", "2.0"), "version", "torch is 2.0 on c, and 1.0 on the other nodes"),
    (
        put("host", "versions", "deepspeed", None),
        "version",
        "deepspeed is not installed on c (/env/bin/python)",
    ),
    (put("group", "ranks", 1, "build", "torch 2.14"), "version", "the build is torch 2.14 on c"),
    (put("group", "ranks", 1, "gpus", 0), "gpus", "c has 2 GPUs, torch sees 0, for 2"),
    (put("host", "own_address", "127.0.1.1"), "hostname", "c: its hostname 'node2' resolves to 127.0.1.1"),
    (put("host", "own_address", None), "hostname", "c: its hostname 'node2' cannot be resolved"),
    (put("group", "ranks", 0, "gloo", "wrong", "value 3"), "sums", "sums with gloo are wrong on c: value 3"),
    (
        put("folder", {"failed": "Read-only file system"}),
        "folder",
        "the check of 'folder' failed on c: Read-",
    ),
    (put("group", {"failed": "KeyError: 'X'"}), "group", "the check of 'group' failed on c: KeyError: 'X'"),
    (put("seen", []), "folder", "c does not see the file that a, b, c wrote to /runs"),
    (put("seen", ["node-0", "node-2"]), "folder", "c does not see the file that b wrote to /runs"),
    (put("shards", "/shards", {"failed": "gone"}), "shards", "c cannot read /shards: gone"),
    (put("shards", "/shards", {"fingerprint": "y"}), "shards", "fingerprint of /shards is y on c, and x"),
    (put("lost", "no reply within 90 s"), "hang", "c stopped at 'done': no reply within 90 s"),
]


@pytest.mark.parametrize(("change", "check", "text"), CASES, ids=[case[2][:30] for case in CASES])
def test_a_problem_is_named_with_its_node(change: Callable[[Report], None], check: str, text: str) -> None:
    results = [result for result in results_of(change) if result.check == check]
    assert all(result.nodes == ["c"] and result.fix for result in results)
    assert text in results[0].text, results


def test_a_node_without_a_report_is_named_and_the_group_is_not() -> None:
    def lose(report: Report) -> None:
        report.clear()
        report["lost"] = "ssh: no route to host"

    assert only(results_of(lose)).text == "cannot start a probe on c: ssh: no route to host"


def without_gpus(report: Report) -> None:
    for rank in report["group"]["ranks"]:
        rank |= {"gpus": 0, "gpu": None}


def test_nodes_without_gpus_pass() -> None:
    reports = {name: node(number) for number, name in enumerate("ab")}
    for report in reports.values():
        without_gpus(report)
        report["host"]["gpus"] = 0
    [summary] = evaluated(reports, 8)
    assert "; no GPUs; " in summary.text


def test_gpus_that_torch_sees_on_no_node_are_an_error() -> None:
    reports = {"a": node(0)}
    without_gpus(reports["a"])
    assert only(evaluated(reports)).text == "a has 2 GPUs, torch sees 0, for 2 ranks"


def test_nodes_on_one_machine_may_mean_the_loopback() -> None:
    reports = {"a": node(0), "b": node(1)}
    reports["b"]["host"] |= {"own_address": "127.0.1.1", "machine": reports["a"]["host"]["machine"]}
    assert len(evaluated(reports)) == 1


def stopped(stage: str, failed: str) -> Callable[[Report], None]:
    """The last node's ranks stop at a stage, all others wait for them."""

    def change(report: Report) -> None:
        for rank in report["group"]["ranks"]:
            rank |= {"stage": stage, "failed": failed}

    return change


def test_the_ranks_that_stopped_first_are_named() -> None:
    crashed = "ended with exit code 1: Traceback\nImportError: libcudart.so.13"
    result = only(results_of(stopped("importing torch", crashed)))
    assert result.check == "torch"
    assert result.text.startswith("the process group stopped at importing torch on c: ended with exit code 1")
    assert result.text.endswith("ImportError: libcudart.so.13")


def test_a_crash_comes_before_ranks_that_waited_for_it() -> None:
    reports = {name: node(number) for number, name in enumerate("abc")}
    for name, report in reports.items():
        failed = "ended with exit code -11: " if name == "b" else "not done in time"
        stopped("joining the group", failed)(report)
    result = only(evaluated(reports))
    assert (result.check, result.nodes) == ("group", ["b"])


def test_ranks_that_waited_for_an_earlier_stage_are_not_named() -> None:
    reports = {name: node(number) for number, name in enumerate("ab")}
    stopped("importing torch", "ended with exit code 1: ImportError")(reports["a"])
    stopped("joining the group", "ended with exit code 1: Connection refused")(reports["b"])
    result = only(evaluated(reports))
    assert (result.check, result.nodes) == ("torch", ["a"])


def test_the_compared_packages_are_dependencies_of_kinemae(repo: Path) -> None:
    project = tomllib.loads((repo / "pyproject.toml").read_text())["project"]
    needed = [*project["dependencies"], *project["optional-dependencies"]["train"]]
    assert set(PACKAGES) <= {text.split(">")[0] for text in needed}


def test_many_nodes_are_named_by_the_first_few() -> None:
    assert join_names([f"n{number}" for number in range(9)]) == "n0, n1, n2, n3, n4, n5 and 3 more"


def test_results_are_printed_with_their_fixes_and_counted() -> None:
    results = [
        Result(level="error", check="folder", text="gone " * 30, fix="mount it", nodes=("a",)),
        Result(level="ok", check="summary", text="fine"),
    ]
    printed = as_text(results, 12.3)
    assert "                   fix: mount it" in printed
    assert printed.endswith("ok       summary   fine\nerrors: 1, after 12 s\n")
    assert max(map(len, printed.splitlines())) <= 110
