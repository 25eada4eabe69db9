"""Machines of a plan: keys of `launch plan`, and a table of devices."""

from dataclasses import dataclass, fields
from typing import Any, Literal

from kinemae.data_tools.devices import GPUS
from kinemae.data_tools.overrides import require

# One core of an AMD Zen 4 server, AVX-512; bfloat16 is no faster there. Its memory is assumed.
_CORE_TFLOPS, _CORE_GB = 0.118, 4.0
CORE_MFU = 0.6  # measured: 0.64
_CORES_PER_NODE, _GPUS_PER_NODE = 1, 8


@dataclass(frozen=True, kw_only=True)
class Machines:
    """Keys of `launch plan` that describe machines; None for the value of the device.

    Attributes:
        nodes: machines.
        devices_per_node: devices of each, with one process per device.
        device: a row of `GPUS`; "cpu" is one core.
        peak_tflops: of one device at the run's precision.
        memory_gb: of one device.
        mfu: model FLOPs utilization, which sets the time of a step.
        process_gb: memory of an empty process; None for that of `pretrain cost`.
        allocator_overhead: extra memory of the allocator for activations, as a fraction.
    """

    nodes: int = 1
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

    @property
    def world(self) -> int:
        """Number of processes."""
        per_node = _GPUS_PER_NODE if self.device in GPUS else _CORES_PER_NODE
        return self.nodes * (self.devices_per_node or per_node)

    def options(self) -> list[str]:
        """The options of `pretrain cost` for the memory of these machines."""
        gpu = GPUS.get(self.device)
        memory_gb = self.memory_gb or (gpu.memory_gb if gpu else _CORE_GB)
        words = [f"--processes={self.world}", f"--memory-gb={memory_gb}"]
        words += [f"--allocator-overhead={self.allocator_overhead}"]
        return [*words, *([f"--process-gb={self.process_gb}"] if self.process_gb else [])]

    def resolved(self, precision: str, mfu: float) -> dict[str, Any]:
        """Values that set the time of a step: missing ones are those of the device, or the expected `mfu`."""
        gpu = GPUS.get(self.device)
        return {
            "device": self.device,
            "nodes": self.nodes,
            "world": self.world,
            "peak_tflops": self.peak_tflops or (gpu.peak_tflops(precision) if gpu else _CORE_TFLOPS),
            "mfu": self.mfu or mfu,
        }
