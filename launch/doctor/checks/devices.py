"""Reads what nvidia-smi and the kernel's log said. Checked on printed samples; not measured on a GPU."""

import csv
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kinemae.launch.doctor.checks.findings import Finding, counted, error, named, odd_ones, ok, or_ok, warning
from kinemae.launch.doctor.probe.devices import GPU_FIELDS, PROCESS_FIELDS, ROW_FIELDS

CHECK = "devices"
HOT_C = 90
BUSY_SHARE = 0.05
# Bits of nvidia-smi's mask: nvml.h, nvmlClocksThrottleReasons.
SLOWED = {
    0x8: "hardware slowdown",
    0x20: "software thermal limit",
    0x40: "hardware thermal limit",
    0x80: "power brake",
}
# https://docs.nvidia.com/deploy/xid-errors: 13, 31, 43, 45 are mostly a program's own fault.
XIDS = {
    48: "double-bit ECC error",
    62: "internal microcontroller halt",
    63: "row remapping recorded",
    64: "row remapping failed",
    74: "NVLink error",
    79: "GPU has fallen off the bus",
    92: "many single-bit ECC errors",
    94: "contained ECC error",
    95: "uncontained ECC error",
    119: "GSP does not answer",
    120: "GSP error",
}
_XID = re.compile(r"NVRM: Xid \(PCI:([0-9A-Fa-f:.]+)\): (\d+)")


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One line of nvidia-smi; memory in MiB, None where it said that it does not know."""

    index: str
    uuid: str
    name: str
    driver: str
    memory_mib: int | None
    used_mib: int | None
    uncorrected: int | None
    slowed_by: list[str]
    celsius: int | None


def read_gpus(text: str) -> list[Gpu]:
    """The GPUs in what nvidia-smi printed as csv without header and units; fields as in `GPU_FIELDS`."""
    gpus = []
    for row in _rows(text, len(GPU_FIELDS)):
        index, uuid, name, driver, total, used, uncorrected, mask, celsius = row
        bits = int(mask, 16) if mask.startswith("0x") else 0
        gpus.append(
            Gpu(
                index=index,
                uuid=uuid,
                name=name,
                driver=driver,
                memory_mib=_number(total),
                used_mib=_number(used),
                uncorrected=_number(uncorrected),
                slowed_by=[reason for bit, reason in SLOWED.items() if bits & bit],
                celsius=_number(celsius),
            )
        )
    return gpus


def read_xids(lines: list[str]) -> list[tuple[str, int]]:
    """(PCI address, number) of every Xid in lines of the kernel's log, each once."""
    found = [(match[1], int(match[2])) for line in lines if (match := _XID.search(line))]
    return list(dict.fromkeys(found))


def has_gpus(devices: Mapping[str, Any]) -> bool:
    """Whether a node's nvidia-smi names at least one GPU."""
    return bool(read_gpus(devices.get("gpus", {}).get("text", "")))


def check_devices(devices: Mapping[str, Mapping[str, Any]], processes: Mapping[str, int]) -> list[Finding]:
    """Hold every node's GPUs against its processes, its neighbours and its own log.

    Args:
        devices: each node's answer of `kinemae.launch.doctor.probe.devices`.
        processes: how many each node is to run; one GPU each where there are any.
    """
    hung = [
        error(
            CHECK,
            f"nvidia-smi on {name} failed: {report['gpus']['failed']}",
            f"take {name} out of the cluster file and restart its driver, or the machine",
            [name],
        )
        for name, report in devices.items()
        if "failed" in report.get("gpus", {})
    ]
    gpus = {name: read_gpus(report.get("gpus", {}).get("text", "")) for name, report in devices.items()}
    if not any(gpus.values()):
        return [*hung, ok(CHECK, "no GPUs: jobs run on the CPU, over Gloo")]
    findings = [*hung, *_counts(gpus, processes), *_kinds(gpus)]
    for name, own in gpus.items():
        findings += [finding for gpu in own for finding in _state(name, gpu, devices[name])]
        findings += _rows_and_log(name, devices[name])
    count = sum(map(len, gpus.values()))
    some = next(own[0] for own in gpus.values() if own)
    return or_ok(
        findings, CHECK, f"{counted(count, 'GPU')}, {some.name}, driver {some.driver}, all of them well"
    )


def _counts(gpus: Mapping[str, list[Gpu]], processes: Mapping[str, int]) -> list[Finding]:
    return [
        error(
            CHECK,
            f"{name} has {counted(len(own), 'GPU')} for {counted(processes[name], 'process')}",
            "lower the number of processes of that node in the cluster file, or ask the "
            "scheduler for more GPUs",
            [name],
        )
        for name, own in gpus.items()
        if len(own) < processes[name]
    ]


def _kinds(gpus: Mapping[str, list[Gpu]]) -> list[Finding]:
    findings = []
    names = {name: ", ".join(sorted({gpu.name for gpu in own})) for name, own in gpus.items() if own}
    usual, others = odd_ones(names)
    for kind, nodes in others.items():
        findings.append(
            warning(
                CHECK,
                f"{named(nodes)} {'have' if len(nodes) > 1 else 'has'} {kind}, the other nodes {usual}",
                "every step waits for the slowest: leave these nodes out, or give them a run of their own",
                nodes,
            )
        )
    drivers = {name: own[0].driver for name, own in gpus.items() if own}
    usual, others = odd_ones(drivers)
    for driver, nodes in others.items():
        text = f"the driver is {driver} on {named(nodes)}, and {usual} on the other nodes"
        findings.append(warning(CHECK, text, "install one driver everywhere", nodes))
    return findings


def _state(node: str, gpu: Gpu, report: Mapping[str, Any]) -> list[Finding]:
    findings = []
    where = f"GPU {gpu.index} of {node}"
    if gpu.memory_mib and gpu.used_mib and gpu.used_mib > BUSY_SHARE * gpu.memory_mib:
        held = _held_by(gpu, report) or "processes that nvidia-smi does not see from here"
        text = f"{where} has {gpu.used_mib} of {gpu.memory_mib} MiB in use, by {held}"
        findings.append(warning(CHECK, text, "wait for them, end them, or leave the node out", [node]))
    if gpu.uncorrected:
        text = f"{where} counts {gpu.uncorrected} ECC errors that could not be corrected"
        mend = "drain the node and reset the GPU (nvidia-smi --gpu-reset); have it replaced if they come back"
        findings.append(error(CHECK, text, mend, [node]))
    if gpu.slowed_by or (gpu.celsius or 0) >= HOT_C:
        text = f"{where} is slowed ({', '.join(gpu.slowed_by) or 'hot'}) at {gpu.celsius} C"
        mend = "look at its cooling and power supply; until then every step waits for it"
        findings.append(warning(CHECK, text, mend, [node]))
    return findings


def _held_by(gpu: Gpu, report: Mapping[str, Any]) -> str:
    rows = _rows(report.get("processes", {}).get("text", ""), len(PROCESS_FIELDS))
    return ", ".join(f"{name} (pid {pid})" for uuid, pid, name, _ in rows if uuid == gpu.uuid)


def _rows_and_log(node: str, report: Mapping[str, Any]) -> list[Finding]:
    findings = []
    for uuid, pending, failed in _rows(report.get("rows", {}).get("text", ""), len(ROW_FIELDS)):
        if failed == "1":
            text = f"{uuid} of {node} could not remap a bad row of its memory"
            findings.append(error(CHECK, text, "drain the node and have the GPU replaced", [node]))
        elif pending == "1":
            text = f"{uuid} of {node} waits for a reset to remap a bad row of its memory"
            findings.append(warning(CHECK, text, "drain the node and reset the GPU", [node]))
    for place, number in read_xids(report.get("kernel", [])):
        if number in XIDS:
            text = f"the kernel of {node} logged Xid {number} ({XIDS[number]}) for the GPU at {place}"
            mend = "drain the node, reset the GPU or restart the machine, and see NVIDIA's list of Xid errors"
            findings.append(error(CHECK, text, mend, [node]))
    return findings


def _rows(text: str, fields: int) -> list[list[str]]:
    rows = [[word.strip() for word in row] for row in csv.reader(text.splitlines())]
    return [row for row in rows if len(row) == fields]


def _number(text: str) -> int | None:
    return int(text) if text.isdigit() else None
