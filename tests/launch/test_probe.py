"""The probe on this machine with real faults, and its start by the doctor."""

import socket
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from kinemae.launch.doctor import nodes, probe
from kinemae.launch.doctor.nodes import Target, ask

REQUEST: dict[str, Any] = {"packages": ["torch"], "run_dir": None, "shards": [], "source": nodes.SOURCE}
REQUEST |= {"token": "x" * 32, "processes": [1]}


def asked(**values: Any) -> dict[str, Any]:
    return {**REQUEST, **values}


def test_this_machine_is_described() -> None:
    found = probe.host(0, REQUEST)
    assert found["versions"]["torch"] is not None
    assert found["versions"]["python"] == sys.version.split()[0]


def test_a_written_file_is_seen_and_another_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "_SEEN_S", 0.3)
    request = asked(run_dir=str(tmp_path), processes=[1, 1])
    written = probe.folder(0, request)
    assert written is not None and written["free_bytes"] > 0
    assert probe.seen(0, request) == ["node-0"]
    assert probe.seen(0, {**request, "token": "another run"}) == []
    missing = asked(run_dir=str(tmp_path / "gone"))
    assert "No such file or directory" in probe._attempt(probe.folder, 0, missing)["failed"]


def test_shards_are_read_and_damage_is_reported(synth_shards: Path, tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_text("{}")
    folders = [str(synth_shards / "train"), str(tmp_path), str(tmp_path / "gone")]
    whole, damaged, gone = probe.shards(0, asked(shards=folders)).values()
    assert whole["fingerprint"]
    assert damaged == {"failed": "KeyError: 'fingerprint'"} and "No such file" in gone["failed"]


def test_right_sums_are_right_and_one_changed_value_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "5")

    def all_reduce(values: torch.Tensor) -> None:
        values *= 15

    def all_reduce_wrong(values: torch.Tensor) -> None:
        values *= 15
        values[8] += 1

    wrong, rate = probe.sums(all_reduce, "gloo", "cpu")
    assert wrong is None and rate > 0
    assert probe.sums(all_reduce_wrong, "gloo", "cpu")[0] == "value 8 is 16 instead of 15"


def test_sums_stay_exact_in_fp32_for_a_thousand_ranks() -> None:
    assert 6 * 1000 * 1001 // 2 < 1 << 24


def reports_of(*commands: list[str], limit_s: float = 60) -> dict[str, dict[str, Any]]:
    """The reports of nodes with one process each, without a process group."""
    names = [f"n{number}" for number in range(len(commands))]
    target = Target(
        names=names,
        processes=[0] * len(commands),
        commands=[(command, [node]) for node, command in enumerate(commands)],
        environment={"NCCL_SPACES": "a 'b' $(c)\n"},
        master="127.0.0.1",
        port=29999,
        limit_s=limit_s,
    )
    return ask(target, asked(processes=target.processes))


def test_a_report_passes_through_a_shell_that_prints_a_greeting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "CHUNK", 100)
    command = ["sh", "-c", 'echo Welcome; exec "$@"', "sh", sys.executable, "-", "0"]
    report = reports_of(command)["n0"]
    assert "lost" not in report
    assert report["host"]["executable"] == sys.executable and report["group"]["ranks"] == []


@pytest.mark.parametrize(
    ("command", "lost"),
    [
        (["sh", "-c", "echo 'n0: Permission denied (publickey).' >&2; exit 255"], "n0: Permission denied"),
        (["sh", "-c", "exit 1"], "it ended without a message"),
        (["sleep", "60"], "no reply within 1.5 s"),
    ],
)
def test_a_probe_that_does_not_start_is_lost_with_its_last_output(command: list[str], lost: str) -> None:
    report = reports_of(command, limit_s=1.5)["n0"]
    assert report["lost"].startswith(lost) and "stage" not in report


def test_a_probe_that_hangs_is_lost_with_its_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    hanging = "def shards(node, request):\n    time.sleep(60)\n"
    monkeypatch.setattr(nodes, "SOURCE", f"{nodes.SOURCE}\n{hanging}")
    report = reports_of([sys.executable, "-", "0"], limit_s=6)["n0"]
    assert (report["stage"], report["lost"]) == ("shards", "no reply within 6 s") and "host" in report


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
    found = probe.group(0, asked(processes=[2], master="127.0.0.1", port=port, limit_s=4))
    waited, hung = found["ranks"]
    assert hung == {"stage": "starting", "failed": "not done in time"}
    assert waited["stage"] in probe.STAGES[:4]  # depends on the load of the machine
