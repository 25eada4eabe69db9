"""What a plan assumes of machines, each number with where it is from; every one can be given instead."""

from dataclasses import dataclass, fields
from typing import Any, Literal, NamedTuple

from kinemae.data_tools.overrides import require

DeviceName = Literal["a100", "h100", "h200", "cpu"]


class Device(NamedTuple):
    """One kind of device, as its maker's data sheet has it.

    Attributes:
        fp32_tflops, bf16_tflops: peak of products of matrices, dense; fp32 without TF32, as PyTorch does.
        memory_gb, memory_gb_s: how much and how fast.
        inner_gb_s: what a device sends to the others of its node, reached in practice.
        per_node: devices in a node.
        cores_per_node: CPU cores in a node.
        base_gb: memory that a process takes before it holds anything.
        attention_share: of the peak that fused attention reaches.
    """

    fp32_tflops: float
    bf16_tflops: float
    memory_gb: float
    memory_gb_s: float
    inner_gb_s: float
    per_node: int
    cores_per_node: int
    base_gb: float
    attention_share: float

    def tflops(self, precision: str) -> float:
        """The peak at a run's precision."""
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
_CORE = "one Zen 4 core, measured here"


@dataclass(frozen=True, kw_only=True)
class Machines:
    """What `launch plan` may be told of machines: keys of a file, or `key=value`. None: the table's.

    Attributes:
        nodes: machines; each holds `devices_per_node`, one process each.
        device: a row of the table; "cpu" is one core.
        peak_tflops: of one device, at the run's precision.
        memory_gb, memory_gb_s: of one device.
        mfu: model FLOPs per second over the peak, forward and backward: takes the place of the time model.
        product_share, attention_share: of the peak that large products and fused attention reach.
        memory_share: of the memory's speed that everything else reaches.
        launch_us: what the host needs to start one operation.
        inner_gb_s: what each device sends to others of its node.
        link_gbit: network of a node, all its adapters together.
        link_share: what of that is reached.
        jitter: how much longer a step of several processes takes because one of them is late.
        cores_per_node: CPU cores; one for each device's process is left out, the others read videos.
        clips_per_core: clips that one core reads in a second; None: from the clip's size.
        video_mb: a stored video; None: the data set's mean where it is on this machine.
        disk_gb_s: what a node writes to where checkpoints are.
        copy_gb_s: from a device to its host's memory.
        base_gb: memory that a process takes before it holds anything.
        slack: how much more memory an allocator takes for activations than they are.
    """

    nodes: int = 1
    device: DeviceName = "h100"
    devices_per_node: int | None = None
    peak_tflops: float | None = None
    memory_gb: float | None = None
    memory_gb_s: float | None = None
    mfu: float | None = None
    product_share: float = 0.65
    attention_share: float | None = None
    memory_share: float = 0.85
    launch_us: float = 5.5
    inner_gb_s: float | None = None
    link_gbit: float = 400.0
    link_share: float = 0.9
    jitter: float = 0.02
    cores_per_node: int | None = None
    clips_per_core: float | None = None
    video_mb: float | None = None
    disk_gb_s: float = 1.0
    copy_gb_s: float = 20.0
    base_gb: float | None = None
    slack: float = 0.1

    def __post_init__(self) -> None:
        for entry in fields(self):
            value = getattr(self, entry.name)
            if value is None or isinstance(value, str):
                continue
            if entry.name in ("jitter", "slack", "launch_us", "base_gb"):
                require(value >= 0, entry.name, "be 0 or more", value)
            elif entry.name in ("mfu", "product_share", "attention_share", "memory_share", "link_share"):
                require(0 < value <= 1, entry.name, "lie above 0 and at most at 1", value)
            else:
                require(value > 0, entry.name, "be above 0", value)

    def resolved(self, precision: str) -> "Resolved":
        """With the table's numbers for what was not given."""
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
            inner_bytes_s=1e9 * _given(self.inner_gb_s, row.inner_gb_s),
            link_bytes_s=1e9 / 8 * self.link_gbit * self.link_share,
            cores_per_node=cores,
            base_bytes=1e9 * _given(self.base_gb, row.base_gb),
            attention_share=_given(self.attention_share, row.attention_share),
            is_cpu=self.device == "cpu",
            given=self,
        )


class Resolved(NamedTuple):
    """Machines in plain units: bytes, seconds, operations."""

    nodes: int
    per_node: int
    peak_flops: float
    memory_bytes: float
    memory_bytes_s: float
    inner_bytes_s: float
    link_bytes_s: float
    cores_per_node: int
    base_bytes: float
    attention_share: float
    is_cpu: bool
    given: Machines

    @property
    def world(self) -> int:
        return self.nodes * self.per_node


_SOURCES = {
    "product_share": "assumed; 0.8 of what H200s reach in practice (790 TFLOP/s)",
    "memory_share": "assumed; copies on GPUs",
    "launch_us": "measured for PyTorch on the CPU, 5 to 6",
    "link_gbit": "assumed: one adapter a node",
    "link_share": "assumed; 45 GB/s of 400 Gbit/s",
    "jitter": "assumed; published runs 0.015 to 0.03",
    "disk_gb_s": "assumed",
    "copy_gb_s": "assumed; PCIe 4",
    "slack": "measured here on the CPU, 0.02 to 0.2",
}


def assumptions(machines: Machines, precision: str) -> list[dict[str, Any]]:
    """Every number that a plan rests on: its key, its value, where it is from."""
    row = DEVICES[machines.device]
    is_cpu = machines.device == "cpu"
    table = {
        "devices_per_node": (row.per_node, "the usual node"),
        "peak_tflops": (row.tflops(precision), _CORE if is_cpu else f"{_SHEET}, {precision}, dense"),
        "memory_gb": (row.memory_gb, "assumed" if is_cpu else _SHEET),
        "memory_gb_s": (row.memory_gb_s, _CORE if is_cpu else _SHEET),
        "inner_gb_s": (row.inner_gb_s, "assumed" if is_cpu else _NVLINK),
        "cores_per_node": (machines.resolved(precision).cores_per_node, "assumed"),
        "attention_share": (
            row.attention_share,
            _CORE if is_cpu else "assumed; published for heads of 64 and few tokens: 0.24 to 0.32",
        ),
        "base_gb": (row.base_gb, "measured here" if is_cpu else "assumed: CUDA and NCCL"),
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
