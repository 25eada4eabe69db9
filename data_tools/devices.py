"""GPUs by name: peak, memory and bandwidth from their data sheets."""

import re
from typing import NamedTuple


class Gpu(NamedTuple):
    """One type of GPU.

    Attributes:
        fp32_tflops, bf16_tflops: dense matmul peak; fp32 without TF32, PyTorch's default.
        memory_gb: its memory.
        bandwidth_gb_s: of its memory.
    """

    fp32_tflops: float
    bf16_tflops: float
    memory_gb: float
    bandwidth_gb_s: float

    def peak_tflops(self, precision: str) -> float:
        """The peak at a precision of a run, "fp32" or "bf16"."""
        return self.bf16_tflops if precision == "bf16" else self.fp32_tflops


GPUS = {
    "a100": Gpu(19.5, 312, 80, 2039),
    "h100": Gpu(67, 989, 80, 3350),
    "h100_pcie": Gpu(51, 756, 80, 2000),
    "h100_nvl": Gpu(60, 835, 94, 3900),
    "h200": Gpu(67, 989, 141, 4800),
    "h200_nvl": Gpu(60, 835, 141, 4800),
    "l4": Gpu(30.3, 121, 24, 300),
    "l40s": Gpu(91.6, 362, 48, 864),
}


def find_gpu(name: str) -> Gpu | None:
    """The GPU of a name as the driver reports it, such as "NVIDIA H100 80GB HBM3"; None if unknown.

    A part of a GPU (MIG) is unknown, since it has a fraction of the peak.
    """
    words = set(re.split(r"[^a-z0-9]+", name.lower()))
    known = [key for key in GPUS if words.issuperset(key.split("_"))]
    return None if "mig" in words or not known else GPUS[max(known, key=len)]
