"""The probe on this machine: what it finds when things are broken for real, and how its lines survive."""

import fcntl
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch

from kinemae.launch.doctor.checks.nodes import BOOTSTRAP, Nodes, probe_words
from kinemae.launch.doctor.checks.unreachable import silences
from kinemae.launch.doctor.checks.versions import PACKAGES
from kinemae.launch.doctor.probe.folders import clean, lock, look, read_shards, write
from kinemae.launch.doctor.probe.group import group, rounds, wrong_senders, wrong_sums
from kinemae.launch.doctor.probe.machine import machine
from kinemae.launch.doctor.probe.network import connect, listen, network
from kinemae.launch.doctor.probe.server import CHUNK


def look_up() -> dict[str, Any]:
    return machine(packages=PACKAGES, variables=("NCCL_", "KINEMAE_"), paths=["/", "/nowhere"])


# --- the machine


def test_secrets_are_compared_and_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KINEMAE_API_TOKEN", "hunter2")
    monkeypatch.setenv("NCCL_DEBUG", "INFO")
    first, again = look_up()["environment"], look_up()["environment"]
    assert first["NCCL_DEBUG"] == "INFO"
    assert "hunter2" not in str(first)
    assert first == again
    monkeypatch.setenv("KINEMAE_API_TOKEN", "hunter3")
    assert look_up()["environment"] != first


def test_the_lock_of_a_build_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    (tmp_path / "py311_cpu/cpu_adam").mkdir(parents=True)
    held = tmp_path / "py311_cpu/cpu_adam/lock"
    held.touch()
    os.utime(held, (0, 0))
    (found,) = look_up()["build_locks"]
    assert found["path"] == str(held)
    assert found["age_s"] > 1e9


def test_this_machine_is_described() -> None:
    found = look_up()
    assert found["packages"]["torch"] is not None
    assert found["missing"] == ["/nowhere"]
    assert found["cores"] >= 1
    assert found["memory_bytes"] > 0


# --- folders


def test_a_file_that_is_written_is_seen_and_one_that_is_not_is_missing(tmp_path: Path) -> None:
    report = write(folder=str(tmp_path), name="a", token="x")
    assert report["sync_ms"] > 0
    assert report["free_bytes"] > 0
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    found = look(folder=str(tmp_path), names=["a", "b"], token="x", wait_s=0.3)
    assert found == {"b": "missing"}
    assert look(folder=str(tmp_path), names=["a"], token="y", wait_s=0) == {"a": "other content"}
    clean(folder=str(tmp_path), names=["a"])
    assert not tmp_path.exists()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "small"
    folder.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16k", "none", str(folder)], capture_output=True
    )
    if made.returncode != 0:
        pytest.skip("mounting a small disk needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_is_full_says_so(small_disk: Path) -> None:
    assert write(folder=str(small_disk), name="a", token="x")["failed"] == "ENOSPC"


def test_a_folder_that_is_not_there_says_so(tmp_path: Path) -> None:
    assert write(folder=str(tmp_path / "gone"), name="a", token="x")["failed"] == "ENOENT"


def test_a_lock_is_refused_while_another_holds_it(tmp_path: Path) -> None:
    with (tmp_path / "lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert lock(path=str(tmp_path / "lock")) == {"state": "taken"}
    answer, kept = lock(path=str(tmp_path / "lock"))
    assert answer == {"state": "mine"}
    kept.close()


def test_shards_are_read_and_damage_to_them_is_told(synth_shards: Path, tmp_path: Path) -> None:
    whole = read_shards(folder=str(synth_shards / "train"), parts=4)
    assert whole["digest"] == read_shards(folder=str(synth_shards / "train"), parts=4)["digest"]
    assert whole["digest"] != read_shards(folder=str(synth_shards / "validation"), parts=4)["digest"]
    (tmp_path / "dataset.json").write_text("{}")
    assert "dataset.json cannot be read" in read_shards(folder=str(tmp_path), parts=4)["failed"]
    assert "No such file" in read_shards(folder=str(tmp_path / "gone"), parts=4)["failed"]


# --- the network


def to(port: int, token: str = "x", host: str = "127.0.0.1") -> dict[str, Any]:
    return {"host": host, "port": port, "token": token}


@pytest.mark.slow
def test_a_connection_counts_when_the_right_listener_answers() -> None:
    answer, held = listen(port=0, token="x")
    good, other = connect(to=[to(answer["any_port"]), to(answer["any_port"], "y")], limit_s=5)
    assert (good["address"], good["from"]) == ("127.0.0.1", "127.0.0.1")
    assert other == {"failed": "another service"}
    del held
    with socket.create_server(("127.0.0.1", 0)) as silent:
        failed = connect(
            to=[to(answer["any_port"]), to(1, host="no-such-host.invalid"), to(silent.getsockname()[1])],
            limit_s=1,
        )
    assert [result["failed"] for result in failed] == ["refused", "unresolved", "no answer"]


def test_a_port_that_somebody_holds_is_told() -> None:
    with socket.create_server(("", 0)) as holder:
        answer, _ = listen(port=holder.getsockname()[1], token="x")
    assert answer["failed"] == "Address already in use"


def test_the_loopback_is_among_the_interfaces() -> None:
    assert "127.0.0.1" in [address for own in network()["interfaces"] for address in own["addresses"]]


# --- sums


def reducer(world: int, fault: int = 0) -> Any:
    """An all-reduce as rank 0 sees it; the first `fault` values come out changed."""

    def all_reduce(values: torch.Tensor) -> None:
        values *= world * (world + 1) // 2
        values[:fault] += 1

    return all_reduce


def test_right_sums_are_right_and_one_changed_value_is_not() -> None:
    assert wrong_sums(reducer(5), 0, 5, "cpu") is None
    said = wrong_sums(reducer(5, fault=1), 0, 5, "cpu")
    assert said == "1 of 1 values of torch.int64 are wrong; at 0 expected 0, got 1"


def test_sums_stay_exact_in_fp32_for_a_thousand_ranks() -> None:
    assert 6 * 1000 * 1001 // 2 < 1 << 24


def test_a_sender_whose_values_arrive_changed_is_named() -> None:
    def broadcast(values: torch.Tensor, src: int) -> None:
        values.copy_(torch.arange(len(values)) * (src + 3))
        values[7] += src == 2

    assert wrong_senders(broadcast, 0, 4, "cpu") == [2]


@pytest.mark.parametrize("nodes", [2, 3, 4, 7])
def test_over_all_rounds_every_pair_meets_once(nodes: int) -> None:
    met = [tuple(sorted(pair)) for pairs in rounds(nodes) for pair in pairs]
    assert sorted(met) == list(combinations(range(nodes), 2))
    for pairs in rounds(nodes):
        busy = [node for pair in pairs for node in pair]
        assert len(busy) == len(set(busy))


# --- the line to a probe


def probe(prefix: str = "") -> list[str]:
    """A probe behind a remote shell that runs `prefix` first."""
    words = probe_words(sys.executable, 0)
    return ["sh", "-c", f'{prefix} exec "$@"', "sh", *words]


def line(command: list[str]) -> Nodes:
    return Nodes(["n1"], [(command, [0])], {"NCCL_SPACES": "a 'b' $(c)\n"})


def test_answers_come_whole_through_a_shell_that_greets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NCCL_LONG", "x" * 3 * CHUNK)
    with closing(line(probe("echo Welcome to n1;"))) as nodes:
        assert nodes.hello(60)[0]["python"] == sys.version.split()[0]
        asked = {"packages": ["torch"], "variables": ["NCCL_"], "paths": []}
        answer = nodes.ask("facts", {0: asked}, 60)[0]
        assert answer["machine"]["environment"]["NCCL_LONG"] == "x" * 3 * CHUNK
        assert answer["machine"]["environment"]["NCCL_SPACES"] == "a 'b' $(c)\n"
        nowhere = {"folder": "/nowhere", "name": "a", "token": "x"}
        assert nodes.ask("write", {0: nowhere}, 60)[0]["failed"] == "ENOENT"
        assert nodes.ask("clock", {0: {"nonsense": 1}}, 60) == {}
        (failure,) = silences(nodes)
        assert "n1 could not answer 'clock': TypeError" in failure.text
        assert nodes.present() == [0]


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (
            ["sh", "-c", "echo 'n1: Permission denied (publickey).' >&2; exit 255"],
            "cannot be asked: n1: Permission",
        ),
        (["sh", "-c", "exit 1"], "n1 cannot be asked: it left without a word"),
        (["sleep", "60"], "n1 cannot be asked: no answer within 1.5 s"),
    ],
)
def test_a_probe_that_does_not_start_is_told_with_its_last_words(command: list[str], says: str) -> None:
    with closing(line(command)) as nodes:
        assert nodes.hello(1.5) == {}
        assert nodes.present() == []
        (finding,) = silences(nodes)
    assert finding.level == "error"
    assert says in finding.text
    assert finding.mend


def test_a_python_that_is_too_old_says_which_it_is() -> None:
    old = f"import sys;sys.version_info=(3,8,10);sys.version='3.8.10 (old)';{BOOTSTRAP.partition(';')[2]}"
    with closing(line([sys.executable, "-c", old, "0"])) as nodes:
        assert nodes.hello(60) == {}
        (finding,) = silences(nodes)
    assert "n1 cannot be asked: python there is 3.8.10" in finding.text
    assert "3.11 or newer" in finding.mend


def test_a_probe_that_dies_between_two_questions_is_told() -> None:
    with closing(line(probe())) as nodes:
        nodes.hello(60)
        nodes._lines[0].process.kill()
        assert nodes.ask("clock", {0: {}}, 60) == {}
        assert "n1 fell silent at 'clock'" in silences(nodes)[0].text


def test_answers_come_in_the_order_of_the_nodes_whoever_was_quicker() -> None:
    commands = [(["sh", "-c", 'sleep 0.5; exec "$@"', "sh", *probe_words(sys.executable, 0)], [0])]
    commands.append((probe_words(sys.executable, 1), [1]))
    with closing(Nodes(["slow", "quick"], commands, {})) as nodes:
        assert list(nodes.hello(60)) == [0, 1]


def test_nodes_with_the_same_fate_are_one_finding() -> None:
    refused = ["sh", "-c", "echo 'srun: error: invalid partition specified: gpu' >&2; exit 1"]
    with closing(Nodes(["a", "b"], [(refused, [0, 1])], {})) as nodes:
        nodes.hello(30)
        (finding,) = silences(nodes)
    assert finding.nodes == ("a", "b")
    assert "`partition`" in finding.mend


@pytest.mark.slow
def test_a_rank_that_hangs_ends_with_the_name_of_what_it_was_doing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import os, time\nif os.environ.get('RANK') == '1':\n    time.sleep(60)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    waited, hung = group(
        processes=2, first_rank=0, world=2, meet=("127.0.0.1", port), device="cpu", limit_s=4
    )
    assert hung == {"stage": "starting", "failed": "not done after 4 s"}
    assert waited["stage"] in ("starting", "device", "joining")  # a busy machine may not have come further
