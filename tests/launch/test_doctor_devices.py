"""What nvidia-smi prints, read. The samples follow its documented csv; no GPU was at hand to record them."""

import os
from pathlib import Path
from typing import Any

import pytest

from kinemae.launch.doctor.checks.devices import check_devices, has_gpus, read_gpus, read_xids
from kinemae.launch.doctor.probe.devices import devices

SOUND = """\
0, GPU-5a1e, NVIDIA H100 80GB HBM3, 550.54.15, 81559, 4, 0, 0x0000000000000001, 33
1, GPU-5a1f, NVIDIA H100 80GB HBM3, 550.54.15, 81559, 4, 0, 0x0000000000000000, 34
"""
CONSUMER = "0, GPU-77, NVIDIA GeForce RTX 4090, 550.54.15, 24564, [N/A], [N/A], [N/A], 41\n"
ROWS = "GPU-5a1e, 0, 0\nGPU-5a1f, 0, 0\n"
XID = "[ 1234.5] NVRM: Xid (PCI:0000:83:00): 79, pid=1122, GPU has fallen off the bus."


def node(
    gpus: str = SOUND, rows: str = ROWS, processes: str = "", kernel: tuple[str, ...] = ()
) -> dict[str, Any]:
    return {
        "gpus": {"text": gpus},
        "rows": {"text": rows},
        "processes": {"text": processes},
        "kernel": list(kernel),
    }


def findings(second: dict[str, Any], processes: int = 2) -> list[tuple[str, str]]:
    nodes = {"a": node(), "b": node(), "c": second}
    found = check_devices(nodes, dict.fromkeys(nodes, processes))
    assert all(finding.mend for finding in found if finding.level != "ok")
    return [(finding.level, finding.text) for finding in found]


def test_a_line_of_nvidia_smi_is_read() -> None:
    first, second = read_gpus(SOUND)
    assert (first.index, first.name, first.driver) == ("0", "NVIDIA H100 80GB HBM3", "550.54.15")
    assert (second.memory_mib, second.used_mib, second.uncorrected, second.celsius) == (81559, 4, 0, 34)
    assert first.slowed_by == []  # 0x1 is an idle GPU


def test_what_a_gpu_does_not_know_is_nothing_to_mend() -> None:
    (gpu,) = read_gpus(CONSUMER)
    assert (gpu.used_mib, gpu.uncorrected, gpu.slowed_by) == (None, None, [])
    report = {"a": node(CONSUMER, rows="GPU-77, [N/A], [N/A]\n")}
    assert [finding.level for finding in check_devices(report, {"a": 1})] == ["ok"]


def test_sound_gpus_are_well() -> None:
    assert findings(node()) == [("ok", "6 GPUs, NVIDIA H100 80GB HBM3, driver 550.54.15, all of them well")]
    assert has_gpus(node())


def test_no_gpus_anywhere_is_well() -> None:
    found = check_devices({"a": {}, "b": {}}, {"a": 4, "b": 4})
    assert [finding.text for finding in found] == ["no GPUs: jobs run on the CPU, over Gloo"]
    assert not has_gpus({})


@pytest.mark.parametrize(
    ("second", "level", "says"),
    [
        (node(SOUND.splitlines()[0]), "error", "c has 1 GPU for 2 processes"),
        ({}, "error", "c has 0 GPUs for 2 processes"),
        (node(SOUND.replace("H100 80GB HBM3", "A100-SXM4-40GB")), "warning", "c has NVIDIA A100-SXM4-40GB"),
        (node(SOUND.replace("550.54.15", "535.1")), "warning", "the driver is 535.1 on c, and 550.54.15"),
        (
            node(SOUND.replace("81559, 4, 0, 0x0000000000000000", "81559, 4, 2, 0x0000000000000000")),
            "error",
            "GPU 1 of c counts 2 ECC errors that could not be corrected",
        ),
        (
            node(SOUND.replace("0x0000000000000000, 34", "0x0000000000000048, 91")),
            "warning",
            "GPU 1 of c is slowed (hardware slowdown, hardware thermal limit) at 91 C",
        ),
        (
            node(
                SOUND.replace("81559, 4, 0, 0x0000000000000001", "81559, 60000, 0, 0x0000000000000001"),
                processes="GPU-5a1e, 4242, /usr/bin/python, 59990\n",
            ),
            "warning",
            "GPU 0 of c has 60000 of 81559 MiB in use, by /usr/bin/python (pid 4242)",
        ),
        (node(rows="GPU-5a1e, 0, 1\n"), "error", "GPU-5a1e of c could not remap a bad row"),
        (node(rows="GPU-5a1e, 1, 0\n"), "warning", "GPU-5a1e of c waits for a reset"),
        (
            node(kernel=(XID, XID)),
            "error",
            "logged Xid 79 (GPU has fallen off the bus) for the GPU at 0000:83:00",
        ),
    ],
)
def test_a_gpu_that_is_not_well_is_named(second: dict[str, Any], level: str, says: str) -> None:
    ((found_level, text),) = findings(second)
    assert (found_level, says in text) == (level, True), text


def test_an_nvidia_smi_that_fails_is_an_error_of_its_own() -> None:
    broken = {"gpus": {"failed": "no answer within 15 s"}}
    found = findings(broken)
    assert found[0] == ("error", "nvidia-smi on c failed: no answer within 15 s")


def test_an_xid_of_a_program_s_own_fault_is_not_held_against_the_gpu() -> None:
    line = "NVRM: Xid (PCI:0000:01:00): 31, pid=1, name=python, MMU Fault"
    assert read_xids([line, "eth0: link up"]) == [("0000:01:00", 31)]
    assert findings(node(kernel=(line,)))[0][0] == "ok"


OLD_DRIVER = """#!/bin/sh
case "$1" in
  *clocks_event_reasons*) echo 'Field "clocks_event_reasons.active" is not a valid field to query.'; exit 2;;
  --query-gpu*) echo '0, GPU-1, Tesla T4, 470.82, 15109, 0, 0, 0x0000000000000001, 30';;
  *) exit 9;;
esac
"""


def test_an_old_driver_is_asked_by_its_own_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(OLD_DRIVER)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    found = devices()
    assert [gpu.name for gpu in read_gpus(found["gpus"]["text"])] == ["Tesla T4"]
    assert found["rows"] == {"failed": "exit code 9"}
    assert [finding.level for finding in check_devices({"a": found}, {"a": 1})] == ["ok"]
