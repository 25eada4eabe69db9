"""Check the GPUs of all nodes from nvidia-smi's output. Tested with printed samples, not on a GPU."""

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kinemae.launch.doctor.probe.devices import GPU_FIELDS, PROCESS_FIELDS, ROW_FIELDS
from kinemae.launch.doctor.results import CheckResult, count, error, join_names, odd_ones, ok, or_ok, warning

CHECK = "devices"
Reports = Mapping[str, Mapping[str, Any]]
HOT_C = 90
BUSY_FRACTION = 0.05
# Bits of nvidia-smi's mask: nvml.h, nvmlClocksThrottleReasons.
THROTTLE_REASONS = {
    0x8: "hardware slowdown",
    0x20: "software thermal limit",
    0x40: "hardware thermal limit",
    0x80: "power brake",
}


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One line of nvidia-smi; memory in MiB, None for values that it does not report."""

    index: str
    uuid: str
    name: str
    driver: str
    memory_mib: int | None
    used_mib: int | None
    uncorrected: int | None
    throttled_by: list[str]
    celsius: int | None


def read_gpus(text: str) -> list[Gpu]:
    """Parse nvidia-smi's csv without header and units; fields as in `GPU_FIELDS`."""
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
                throttled_by=[reason for bit, reason in THROTTLE_REASONS.items() if bits & bit],
                celsius=_number(celsius),
            )
        )
    return gpus


def has_gpus(devices: Mapping[str, Any]) -> bool:
    """Check whether nvidia-smi lists at least one GPU of a node."""
    return bool(read_gpus(devices.get("gpus", {}).get("text", "")))


def check_devices(
    devices: Mapping[str, Mapping[str, Any]], processes: Mapping[str, int]
) -> list[CheckResult]:
    """Check number, type and state of the GPUs of each node.

    Args:
        devices: the replies of `kinemae.launch.doctor.probe.devices`.
        processes: of each node; each needs a GPU if there are any.
    """
    failed = [
        error(
            CHECK,
            f"nvidia-smi on {name} failed: {report['gpus']['failed']}",
            f"remove {name} from the cluster file and restart its driver or the machine",
            [name],
        )
        for name, report in devices.items()
        if "failed" in report.get("gpus", {})
    ]
    gpus = {name: read_gpus(report.get("gpus", {}).get("text", "")) for name, report in devices.items()}
    if not any(gpus.values()):
        return [*failed, ok(CHECK, "no GPUs: jobs run on the CPU with Gloo")]
    results = failed + [
        error(
            CHECK,
            f"{name} has {count(len(own), 'GPU')} for {count(processes[name], 'process')}",
            "lower the number of processes in the cluster file, or ask the scheduler for more GPUs",
            [name],
        )
        for name, own in gpus.items()
        if len(own) < processes[name]
    ]
    kinds = {name: ", ".join(sorted({gpu.name for gpu in own})) for name, own in gpus.items() if own}
    results += _differences("GPU", kinds, "leave these nodes out: every step waits for the slowest")
    drivers = {name: own[0].driver for name, own in gpus.items() if own}
    results += _differences("driver", drivers, "install one driver on all nodes")
    for name, own in gpus.items():
        results += [result for gpu in own for result in _check_gpu(name, gpu, devices[name])]
        results += _check_memory_rows(name, devices[name])
    some = next(own[0] for own in gpus.values() if own)
    number = count(sum(map(len, gpus.values())), "GPU")
    return or_ok(results, CHECK, f"{number}, {some.name}, driver {some.driver}")


def _differences(noun: str, values: Mapping[str, str], fix: str) -> list[CheckResult]:
    usual, others = odd_ones(values)
    return [
        warning(CHECK, f"{noun} {value} on {join_names(nodes)}, and {usual} on the other nodes", fix, nodes)
        for value, nodes in others.items()
    ]


def _check_gpu(node: str, gpu: Gpu, report: Mapping[str, Any]) -> list[CheckResult]:
    results = []
    where = f"GPU {gpu.index} of {node}"
    if gpu.memory_mib and gpu.used_mib and gpu.used_mib > BUSY_FRACTION * gpu.memory_mib:
        rows = _rows(report.get("processes", {}).get("text", ""), len(PROCESS_FIELDS))
        users = ", ".join(f"{name} (pid {pid})" for uuid, pid, name, _ in rows if uuid == gpu.uuid)
        text = f"{where} has {gpu.used_mib} of {gpu.memory_mib} MiB in use by {users or 'unknown processes'}"
        results.append(warning(CHECK, text, "wait for them, end them, or leave the node out", [node]))
    if gpu.uncorrected:
        text = f"{where} has {gpu.uncorrected} uncorrected ECC errors"
        fix = "drain the node and reset the GPU (nvidia-smi --gpu-reset); replace it if they return"
        results.append(error(CHECK, text, fix, [node]))
    if gpu.throttled_by or (gpu.celsius or 0) >= HOT_C:
        text = f"{where} is throttled ({', '.join(gpu.throttled_by) or 'hot'}) at {gpu.celsius} C"
        results.append(warning(CHECK, text, "check its cooling and power supply", [node]))
    return results


def _check_memory_rows(node: str, report: Mapping[str, Any]) -> list[CheckResult]:
    results = []
    for uuid, pending, failed in _rows(report.get("rows", {}).get("text", ""), len(ROW_FIELDS)):
        if failed == "1":
            text = f"{uuid} of {node} could not remap a bad row of its memory"
            results.append(error(CHECK, text, "drain the node and have the GPU replaced", [node]))
        elif pending == "1":
            text = f"{uuid} of {node} needs a reset to remap a bad row of its memory"
            results.append(warning(CHECK, text, "drain the node and reset the GPU", [node]))
    return results


def _rows(text: str, fields: int) -> list[list[str]]:
    rows = [[word.strip() for word in row] for row in csv.reader(text.splitlines())]
    return [row for row in rows if len(row) == fields]


def _number(text: str) -> int | None:
    return int(text) if text.isdigit() else None
