"""The probe on this machine with real faults, and its connection to the doctor."""

import fcntl
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch

from kinemae.launch.doctor.checks.versions import PACKAGES
from kinemae.launch.doctor.probe.folders import clean, lock, look, read_shards, write
from kinemae.launch.doctor.probe.group import group, wrong_senders, wrong_sums
from kinemae.launch.doctor.probe.machine import machine
from kinemae.launch.doctor.probe.network import connect, listen, network
from kinemae.launch.doctor.probe.server import CHUNK
from kinemae.launch.doctor.probes import BOOTSTRAP, Probes, probe_words

# --- the machine


def test_this_machine_is_described() -> None:
    found = machine(packages=PACKAGES, variables=("HOME",), paths=["/", "/nowhere"])
    assert found["packages"]["torch"] is not None
    assert found["missing"] == ["/nowhere"]
    assert found["cores"] >= 1 and found["environment"] == {"HOME": os.environ["HOME"]}
    assert found["memory_bytes"] > 0


# --- folders


def test_a_written_file_is_found_and_another_is_missing(tmp_path: Path) -> None:
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


def test_a_full_disk_is_reported(small_disk: Path) -> None:
    assert write(folder=str(small_disk), name="a", token="x")["failed"] == "ENOSPC"


def test_a_missing_folder_is_reported(tmp_path: Path) -> None:
    assert write(folder=str(tmp_path / "gone"), name="a", token="x")["failed"] == "ENOENT"


def test_a_lock_is_refused_while_another_holds_it(tmp_path: Path) -> None:
    with (tmp_path / "lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert lock(path=str(tmp_path / "lock")) == {"state": "busy"}
    answer, kept = lock(path=str(tmp_path / "lock"))
    assert answer == {"state": "locked"}
    kept.close()


def test_shards_are_read_and_damage_is_reported(synth_shards: Path, tmp_path: Path) -> None:
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
    assert [result["failed"] for result in failed] == ["refused", "unresolved", "no reply"]


def test_a_used_port_is_reported() -> None:
    with socket.create_server(("", 0)) as holder:
        answer, _ = listen(port=holder.getsockname()[1], token="x")
    assert answer["failed"] == "Address already in use"


def test_the_loopback_is_among_the_interfaces() -> None:
    assert "127.0.0.1" in [address for own in network()["interfaces"] for address in own["addresses"]]


# --- sums


def reducer(world: int, fault: int = 0) -> Any:
    """Simulate an all-reduce of rank 0; the first `fault` values are wrong."""

    def all_reduce(values: torch.Tensor) -> None:
        values *= world * (world + 1) // 2
        values[:fault] += 1

    return all_reduce


def test_right_sums_are_right_and_one_changed_value_is_not() -> None:
    assert wrong_sums(reducer(5), 0, 5, "cpu") is None
    reply = wrong_sums(reducer(5, fault=1), 0, 5, "cpu")
    assert reply == "1 of 1 values of torch.int64 are wrong; at 0 expected 0, got 1"


def test_sums_stay_exact_in_fp32_for_a_thousand_ranks() -> None:
    assert 6 * 1000 * 1001 // 2 < 1 << 24


def test_the_sender_of_changed_values_is_named() -> None:
    def broadcast(values: torch.Tensor, src: int) -> None:
        values.copy_(torch.arange(len(values)) * (src + 3))
        values[7] += src == 2

    assert wrong_senders(broadcast, 0, 4, "cpu") == [2]


# --- the connection to a probe


def probe(prefix: str = "") -> list[str]:
    """A probe behind a remote shell that runs `prefix` first."""
    words = probe_words(sys.executable, 0)
    return ["sh", "-c", f'{prefix} exec "$@"', "sh", *words]


def probes_of(command: list[str]) -> Probes:
    return Probes(["n1"], [(command, [0])], {"NCCL_SPACES": "a 'b' $(c)\n"})


def test_replies_pass_through_a_shell_that_prints_a_greeting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NCCL_LONG", "x" * 3 * CHUNK)
    with closing(probes_of(probe("echo Welcome to n1;"))) as nodes:
        assert nodes.hello(60)[0]["python"] == sys.version.split()[0]
        asked = {"packages": ["torch"], "variables": ["NCCL_LONG", "NCCL_SPACES"], "paths": []}
        answer = nodes.ask("facts", {0: asked}, 60)[0]
        assert answer["machine"]["environment"]["NCCL_LONG"] == "x" * 3 * CHUNK
        assert answer["machine"]["environment"]["NCCL_SPACES"] == "a 'b' $(c)\n"
        nowhere = {"folder": "/nowhere", "name": "a", "token": "x"}
        assert nodes.ask("write", {0: nowhere}, 60)[0]["failed"] == "ENOENT"
        assert nodes.ask("lock", {0: {"nonsense": 1}}, 60) == {}
        (failure,) = nodes.unreachable()
        assert "n1 could not answer 'lock': TypeError" in failure.text
        assert nodes.present() == [0]


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (
            ["sh", "-c", "echo 'n1: Permission denied (publickey).' >&2; exit 255"],
            "cannot start a probe on n1: n1: Permission",
        ),
        (["sh", "-c", "exit 1"], "cannot start a probe on n1: it ended without a message"),
        (["sleep", "60"], "cannot start a probe on n1: no reply within 1.5 s"),
    ],
)
def test_a_probe_that_does_not_start_is_reported_with_its_last_output(command: list[str], says: str) -> None:
    with closing(probes_of(command)) as nodes:
        assert nodes.hello(1.5) == {}
        assert nodes.present() == []
        (result,) = nodes.unreachable()
    assert result.level == "error"
    assert says in result.text
    assert result.fix


def test_an_old_python_is_reported_with_its_version() -> None:
    old = f"import sys;sys.version_info=(3,8,10);sys.version='3.8.10 (old)';{BOOTSTRAP.partition(';')[2]}"
    with closing(probes_of([sys.executable, "-c", old, "0"])) as nodes:
        assert nodes.hello(60) == {}
        (result,) = nodes.unreachable()
    assert "the interpreter on n1 is Python 3.8.10" in result.text
    assert "3.11 or newer" in result.fix


def test_a_probe_that_dies_between_requests_is_reported() -> None:
    with closing(probes_of(probe())) as nodes:
        nodes.hello(60)
        nodes._connections[0].process.kill()
        assert nodes.ask("lock", {0: {}}, 60) == {}
        assert "n1 stopped replying at 'lock'" in nodes.unreachable()[0].text


def test_replies_come_in_the_order_of_the_nodes() -> None:
    commands = [(["sh", "-c", 'sleep 0.5; exec "$@"', "sh", *probe_words(sys.executable, 0)], [0])]
    commands.append((probe_words(sys.executable, 1), [1]))
    with closing(Probes(["slow", "quick"], commands, {})) as nodes:
        assert list(nodes.hello(60)) == [0, 1]


def test_nodes_with_the_same_error_are_one_result() -> None:
    refused = ["sh", "-c", "echo 'srun: error: invalid partition specified: gpu' >&2; exit 1"]
    with closing(Probes(["a", "b"], [(refused, [0, 1])], {})) as nodes:
        nodes.hello(30)
        (result,) = nodes.unreachable()
    assert result.nodes == ("a", "b")


@pytest.mark.slow
def test_a_hanging_rank_is_killed_and_reported_with_its_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import os, time\nif os.environ.get('RANK') == '1':\n    time.sleep(60)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    waited, hung = group(
        processes=2, first_rank=0, world_size=2, master=("127.0.0.1", port), device="cpu", limit_s=4
    )
    assert hung == {"stage": "starting", "failed": "not done after 4 s"}
    assert waited["stage"] in ("starting", "device", "joining")  # depends on the load of the machine
