"""Parsing of nvidia-smi. The samples follow its documented csv; they were not recorded on a GPU."""

import os
from pathlib import Path
from typing import Any

import pytest

from kinemae.launch.doctor.checks.devices import check_devices, has_gpus, read_gpus
from kinemae.launch.doctor.probe.devices import devices

HEALTHY = """\
0, GPU-5a1e, NVIDIA H100 80GB HBM3, 550.54.15, 81559, 4, 0, 0x0000000000000001, 33
1, GPU-5a1f, NVIDIA H100 80GB HBM3, 550.54.15, 81559, 4, 0, 0x0000000000000000, 34
"""
CONSUMER = "0, GPU-77, NVIDIA GeForce RTX 4090, 550.54.15, 24564, [N/A], [N/A], [N/A], 41\n"
ROWS = "GPU-5a1e, 0, 0\nGPU-5a1f, 0, 0\n"


def node(gpus: str = HEALTHY, rows: str = ROWS, processes: str = "") -> dict[str, Any]:
    return {"gpus": {"text": gpus}, "rows": {"text": rows}, "processes": {"text": processes}}


def results_of(second: dict[str, Any], processes: int = 2) -> list[tuple[str, str]]:
    nodes = {"a": node(), "b": node(), "c": second}
    found = check_devices(nodes, dict.fromkeys(nodes, processes))
    assert all(result.fix for result in found if result.level != "ok")
    return [(result.level, result.text) for result in found]


def test_nvidia_smi_lines_are_parsed() -> None:
    first, second = read_gpus(HEALTHY)
    assert (first.index, first.name, first.driver) == ("0", "NVIDIA H100 80GB HBM3", "550.54.15")
    assert (second.memory_mib, second.used_mib, second.uncorrected, second.celsius) == (81559, 4, 0, 34)
    assert first.throttled_by == []  # 0x1 is an idle GPU


def test_values_that_a_gpu_does_not_report_are_ignored() -> None:
    (gpu,) = read_gpus(CONSUMER)
    assert (gpu.used_mib, gpu.uncorrected, gpu.throttled_by) == (None, None, [])
    report = {"a": node(CONSUMER, rows="GPU-77, [N/A], [N/A]\n")}
    assert [result.level for result in check_devices(report, {"a": 1})] == ["ok"]


def test_healthy_gpus_pass() -> None:
    assert results_of(node()) == [("ok", "6 GPUs, NVIDIA H100 80GB HBM3, driver 550.54.15")]
    assert has_gpus(node())


def test_nodes_without_gpus_pass() -> None:
    found = check_devices({"a": {}, "b": {}}, {"a": 4, "b": 4})
    assert [result.text for result in found] == ["no GPUs: jobs run on the CPU with Gloo"]
    assert not has_gpus({})


@pytest.mark.parametrize(
    ("second", "level", "says"),
    [
        (node(HEALTHY.splitlines()[0]), "error", "c has 1 GPU for 2 processes"),
        ({}, "error", "c has 0 GPUs for 2 processes"),
        (
            node(HEALTHY.replace("H100 80GB HBM3", "A100-SXM4-40GB")),
            "warning",
            "GPU NVIDIA A100-SXM4-40GB on c, and NVIDIA H100",
        ),
        (node(HEALTHY.replace("550.54.15", "535.1")), "warning", "driver 535.1 on c, and 550.54.15"),
        (
            node(HEALTHY.replace("81559, 4, 0, 0x0000000000000000", "81559, 4, 2, 0x0000000000000000")),
            "error",
            "GPU 1 of c has 2 uncorrected ECC errors",
        ),
        (
            node(HEALTHY.replace("0x0000000000000000, 34", "0x0000000000000048, 91")),
            "warning",
            "GPU 1 of c is throttled (hardware slowdown, hardware thermal limit) at 91 C",
        ),
        (
            node(
                HEALTHY.replace("81559, 4, 0, 0x0000000000000001", "81559, 60000, 0, 0x0000000000000001"),
                processes="GPU-5a1e, 4242, /usr/bin/python, 59990\n",
            ),
            "warning",
            "GPU 0 of c has 60000 of 81559 MiB in use by /usr/bin/python (pid 4242)",
        ),
        (node(rows="GPU-5a1e, 0, 1\n"), "error", "GPU-5a1e of c could not remap a bad row"),
        (node(rows="GPU-5a1e, 1, 0\n"), "warning", "GPU-5a1e of c needs a reset"),
    ],
)
def test_a_faulty_gpu_is_named(second: dict[str, Any], level: str, says: str) -> None:
    ((found_level, text),) = results_of(second)
    assert (found_level, says in text) == (level, True), text


def test_a_failing_nvidia_smi_is_an_error() -> None:
    broken = {"gpus": {"failed": "no reply within 15 s"}}
    found = results_of(broken)
    assert found[0] == ("error", "nvidia-smi on c failed: no reply within 15 s")


OLD_DRIVER = """#!/bin/sh
case "$1" in
  *clocks_event_reasons*) echo 'Field "clocks_event_reasons.active" is not a valid field to query.'; exit 2;;
  --query-gpu*) echo '0, GPU-1, Tesla T4, 470.82, 15109, 0, 0, 0x0000000000000001, 30';;
  *) exit 9;;
esac
"""


def test_an_old_driver_is_queried_with_its_field_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(OLD_DRIVER)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    found = devices()
    assert [gpu.name for gpu in read_gpus(found["gpus"]["text"])] == ["Tesla T4"]
    assert found["rows"] == {"failed": "exit code 9"}
    assert [result.level for result in check_devices({"a": found}, {"a": 1})] == ["ok"]
