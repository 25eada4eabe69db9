"""Assumptions of a plan about machines, with their sources; every number is a key that can be overridden."""

from dataclasses import dataclass, fields
from typing import Any, Literal, NamedTuple

from kinemae.data_tools.overrides import require

DeviceName = Literal["a100", "h100", "h200", "cpu"]


class Device(NamedTuple):
    """One type of device, from its data sheet.

    Attributes:
        fp32_tflops, bf16_tflops: dense matmul peak; fp32 without TF32, PyTorch's default.
        memory_gb, memory_gb_s: memory and its bandwidth.
        intra_node_gb_s: achieved bandwidth to other devices of the node.
        per_node: devices in a node.
        cores_per_node: CPU cores in a node.
        process_gb: memory of an empty process.
        attention_efficiency: fraction of the peak that fused attention achieves.
    """

    fp32_tflops: float
    bf16_tflops: float
    memory_gb: float
    memory_gb_s: float
    intra_node_gb_s: float
    per_node: int
    cores_per_node: int
    process_gb: float
    attention_efficiency: float

    def tflops(self, precision: str) -> float:
        """The peak at a precision."""
        return self.bf16_tflops if precision == "bf16" else self.fp32_tflops


DEVICES: dict[str, Device] = {
    "a100": Device(19.5, 312, 80, 2039, 220, 8, 96, 1.5, 0.3),
    "h100": Device(67, 989, 80, 3350, 360, 8, 112, 1.5, 0.3),
    "h200": Device(67, 989, 141, 4800, 360, 8, 112, 1.5, 0.3),
    # One core of an AMD Zen 4 server, AVX-512; bfloat16 is no faster there.
    "cpu": Device(0.118, 0.118, 4, 36, 4, 1, 1, 0.87, 0.65),
}

_SHEET = "data sheet"
_NVLINK = "80 % of NVLink's data sheet"
_CORE = "one Zen 4 core, measured"


@dataclass(frozen=True, kw_only=True)
class Machines:
    """Keys of `launch plan` that describe machines; None for the device table's value.

    Attributes:
        nodes, devices_per_node: machines; devices of each, with one process per device.
        device: a row of `DEVICES`; "cpu" is one core.
        peak_tflops: of one device at the run's precision.
        memory_gb, memory_gb_s: of one device.
        mfu: model FLOPs utilization; replaces the model of time.
        matmul_efficiency, attention_efficiency: achieved fraction of the peak.
        memory_efficiency: achieved fraction of the memory bandwidth.
        kernel_launch_us: host time to launch one operation.
        intra_node_gb_s: bandwidth of a device to others of its node.
        link_gbit: network of a node, all adapters.
        link_efficiency: achieved fraction of it.
        jitter: extra time of a step of several processes, which waits for the slowest.
        cores_per_node: CPU cores; one for each process, the others for data workers.
        clips_per_core: clips per second that one core reads; None for an estimate by the clip's size.
        video_mb: size of a stored video; None for the mean of the data set if it is on this machine.
        disk_gb_s: write bandwidth of a node.
        device_to_host_gb_s: copy bandwidth.
        process_gb: memory of an empty process.
        allocator_overhead: extra memory of the allocator for activations, as a fraction.
    """

    nodes: int = 1
    device: DeviceName = "h100"
    devices_per_node: int | None = None
    peak_tflops: float | None = None
    memory_gb: float | None = None
    memory_gb_s: float | None = None
    mfu: float | None = None
    matmul_efficiency: float = 0.65
    attention_efficiency: float | None = None
    memory_efficiency: float = 0.85
    kernel_launch_us: float = 5.5
    intra_node_gb_s: float | None = None
    link_gbit: float = 400.0
    link_efficiency: float = 0.9
    jitter: float = 0.02
    cores_per_node: int | None = None
    clips_per_core: float | None = None
    video_mb: float | None = None
    disk_gb_s: float = 1.0
    device_to_host_gb_s: float = 20.0
    process_gb: float | None = None
    allocator_overhead: float = 0.1

    def __post_init__(self) -> None:
        for entry in fields(self):
            value = getattr(self, entry.name)
            if value is None or isinstance(value, str):
                continue
            if entry.name in ("jitter", "allocator_overhead", "kernel_launch_us", "process_gb"):
                require(value >= 0, entry.name, "be 0 or more", value)
            elif entry.name == "mfu" or entry.name.endswith("_efficiency"):
                require(0 < value <= 1, entry.name, "lie above 0 and at most at 1", value)
            else:
                require(value > 0, entry.name, "be above 0", value)

    def resolved(self, precision: str) -> "Resolved":
        """Fill missing values from the device table."""
        row = DEVICES[self.device]
        per_node = self.devices_per_node or row.per_node
        cores = self.cores_per_node
        if cores is None:
            cores = 2 * per_node if self.device == "cpu" else row.cores_per_node
        return Resolved(
            nodes=self.nodes,
            per_node=per_node,
            peak_flops=1e12 * _given(self.peak_tflops, row.tflops(precision)),
            memory_bytes=1e9 * _given(self.memory_gb, row.memory_gb),
            memory_bytes_s=1e9 * _given(self.memory_gb_s, row.memory_gb_s),
            intra_node_bytes_s=1e9 * _given(self.intra_node_gb_s, row.intra_node_gb_s),
            link_bytes_s=1e9 / 8 * self.link_gbit * self.link_efficiency,
            cores_per_node=cores,
            process_bytes=1e9 * _given(self.process_gb, row.process_gb),
            attention_efficiency=_given(self.attention_efficiency, row.attention_efficiency),
            is_cpu=self.device == "cpu",
            given=self,
        )


class Resolved(NamedTuple):
    """Machines in base units: bytes, seconds, FLOPs."""

    nodes: int
    per_node: int
    peak_flops: float
    memory_bytes: float
    memory_bytes_s: float
    intra_node_bytes_s: float
    link_bytes_s: float
    cores_per_node: int
    process_bytes: float
    attention_efficiency: float
    is_cpu: bool
    given: Machines

    @property
    def world(self) -> int:
        return self.nodes * self.per_node


_SOURCES = {
    "matmul_efficiency": "assumed; 0.8 of the measured peak of an H200 (790 TFLOP/s)",
    "memory_efficiency": "assumed; copies on GPUs",
    "kernel_launch_us": "measured for PyTorch on the CPU, 5 to 6",
    "link_gbit": "assumed: one adapter per node",
    "link_efficiency": "assumed; 45 GB/s of 400 Gbit/s",
    "jitter": "assumed; published runs 0.015 to 0.03",
    "disk_gb_s": "assumed",
    "device_to_host_gb_s": "assumed; PCIe 4",
    "allocator_overhead": "measured on the CPU, 0.02 to 0.2",
}


def assumptions(machines: Machines, precision: str) -> list[dict[str, Any]]:
    """Every assumption: its key, value and source."""
    row = DEVICES[machines.device]
    is_cpu = machines.device == "cpu"
    table = {
        "devices_per_node": (row.per_node, "the usual node"),
        "peak_tflops": (row.tflops(precision), _CORE if is_cpu else f"{_SHEET}, {precision}, dense"),
        "memory_gb": (row.memory_gb, "assumed" if is_cpu else _SHEET),
        "memory_gb_s": (row.memory_gb_s, _CORE if is_cpu else _SHEET),
        "intra_node_gb_s": (row.intra_node_gb_s, "assumed" if is_cpu else _NVLINK),
        "cores_per_node": (machines.resolved(precision).cores_per_node, "assumed"),
        "attention_efficiency": (
            row.attention_efficiency,
            _CORE if is_cpu else "assumed; published for heads of 64 and few tokens: 0.24 to 0.32",
        ),
        "process_gb": (row.process_gb, "measured" if is_cpu else "assumed: CUDA and NCCL"),
    }
    lines = []
    for entry in fields(machines):
        value, default = getattr(machines, entry.name), entry.default
        if entry.name in ("nodes", "device", "mfu", "clips_per_core", "video_mb"):
            continue  # the tables show them
        if value != default:
            lines.append({"key": entry.name, "value": value, "source": "given"})
        elif entry.name in table:
            lines.append({"key": entry.name, "value": table[entry.name][0], "source": table[entry.name][1]})
        else:
            lines.append({"key": entry.name, "value": value, "source": _SOURCES[entry.name]})
    return lines


def _given(value: float | None, table: float) -> float:
    return table if value is None else value
