"""Machines of a plan: from a cluster file and the keys of `launch plan`, and from a table of devices."""

from dataclasses import dataclass, fields
from typing import Any, Literal, NamedTuple

import yaml

from kinemae.data_tools.config_files import find_config
from kinemae.data_tools.devices import GPUS
from kinemae.data_tools.overrides import require
from kinemae.launch.cluster import read_cluster
from kinemae.launch.k8s.cluster import KubernetesCluster
from kinemae.launch.local import LocalCluster
from kinemae.launch.slurm.cluster import SlurmCluster
from kinemae.launch.ssh import SshCluster


class Device(NamedTuple):
    """One type of device.

    Attributes:
        fp32_tflops, bf16_tflops, memory_gb: see `Gpu`.
        per_node: devices in a node.
        mfu: assumed model FLOPs utilization.
        process_gb: memory of an empty process.
    """

    fp32_tflops: float
    bf16_tflops: float
    memory_gb: float
    per_node: int
    mfu: float
    process_gb: float


DEVICES = {
    **{
        name: Device(gpu.fp32_tflops, gpu.bf16_tflops, gpu.memory_gb, 8, 0.3, 1.5)
        for name, gpu in GPUS.items()
    },
    # One core of an AMD Zen 4 server, AVX-512; bfloat16 is no faster there.
    "cpu": Device(0.118, 0.118, 4, 1, 0.6, 0.87),
}
_GPU_SOURCES = {"mfu": "assumed; published ViT-B runs on an H200: 0.20 to 0.42", "process_gb": "assumed"}
_CPU_SOURCES = {"mfu": "measured on one Zen 4 core, 0.64", "process_gb": "measured", "memory_gb": "assumed"}


@dataclass(frozen=True, kw_only=True)
class Machines:
    """Keys of `launch plan` that describe machines; None for the value of the cluster file or the device.

    Attributes:
        nodes: machines.
        devices_per_node: devices of each, with one process per device.
        device: a row of `DEVICES`; "cpu" is one core.
        peak_tflops: of one device at the run's precision.
        memory_gb: of one device.
        mfu: model FLOPs utilization, which sets the time of a step.
        process_gb: memory of an empty process.
        allocator_overhead: extra memory of the allocator for activations, as a fraction.
    """

    nodes: int | None = None
    devices_per_node: int | None = None
    device: Literal["a100", "h100", "h100_pcie", "h100_nvl", "h200", "h200_nvl", "l4", "l40s", "cpu"] = "h100"
    peak_tflops: float | None = None
    memory_gb: float | None = None
    mfu: float | None = None
    process_gb: float | None = None
    allocator_overhead: float = 0.1

    def __post_init__(self) -> None:
        for entry in fields(self):
            value = getattr(self, entry.name)
            if isinstance(value, int | float):
                least = value >= 0 if entry.name == "allocator_overhead" else value > 0
                require(least, entry.name, "be above 0", value)
        require(self.mfu is None or self.mfu <= 1, "mfu", "be at most 1", self.mfu)

    def resolved(self, precision: str, *, nodes: int = 1, world: int | None = None) -> "Resolved":
        """Fill missing values.

        Args:
            nodes, world: nodes and processes of the cluster file; None without one.
        """
        row = DEVICES[self.device]
        if world is None or self.nodes or self.devices_per_node:
            per_node = self.devices_per_node or (row.per_node if world is None else world // nodes)
            nodes = self.nodes or nodes
            world = nodes * per_node
        return Resolved(
            device=self.device,
            nodes=nodes,
            world=world,
            peak_tflops=self.peak_tflops or (row.bf16_tflops if precision == "bf16" else row.fp32_tflops),
            memory_gb=self.memory_gb or row.memory_gb,
            mfu=self.mfu or row.mfu,
            process_gb=self.process_gb or row.process_gb,
            allocator_overhead=self.allocator_overhead,
        )


class Resolved(NamedTuple):
    """Machines without missing values; `world` is the number of processes."""

    device: str
    nodes: int
    world: int
    peak_tflops: float
    memory_gb: float
    mfu: float
    process_gb: float
    allocator_overhead: float


def assumptions(machines: Machines, resolved: Resolved) -> list[dict[str, Any]]:
    """The value and source of every key that the numbers depend on."""
    sources = {"peak_tflops": "data sheet, dense", "memory_gb": "data sheet"}
    sources["allocator_overhead"] = "measured on the CPU, 0.02 to 0.2"
    sources |= _CPU_SOURCES if machines.device == "cpu" else _GPU_SOURCES
    defaults = {entry.name: entry.default for entry in fields(Machines)}
    return [
        {"key": key, "value": getattr(resolved, key), "source": source}
        if getattr(machines, key) == defaults[key]
        else {"key": key, "value": getattr(resolved, key), "source": "given"}
        for key, source in sources.items()
    ]


def read_nodes(file: str) -> tuple[int, int]:
    """The numbers of nodes and processes of a cluster file of any kind of `launch`.

    Raises:
        ValueError: the file is of no kind, or wrong.
    """
    path = find_config(file, "cluster")
    schemas = (LocalCluster, SshCluster, SlurmCluster, KubernetesCluster)
    try:
        keys = set(yaml.safe_load(path.read_text(encoding="utf-8")) or ())
    except (OSError, UnicodeDecodeError, yaml.YAMLError, TypeError):
        keys = set()  # `read_cluster` reports it
    # The kind with the most keys of the file; with a misspelled key, its error names the key.
    schema = max(schemas, key=lambda kind: len(keys & {entry.name for entry in fields(kind)}))
    cluster: Any = read_cluster(schema, path, [])
    if isinstance(cluster, LocalCluster):
        return 1, cluster.processes
    if isinstance(cluster, SshCluster):
        return len(cluster.slots()), sum(cluster.slots().values())
    return cluster.nodes, cluster.nodes * cluster.processes_per_node
