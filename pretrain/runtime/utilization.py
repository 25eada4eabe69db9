"""Utilization of the devices: achieved FLOP/s, and the fraction of the peak (MFU)."""

import torch

from kinemae.data_tools.devices import find_gpu
from kinemae.pretrain.runtime.processes import Processes
from kinemae.pretrain.runtime.settings import EngineConfig, precision_on


def utilization(flops: float, seconds: float, processes: Processes, engine: EngineConfig) -> dict[str, float]:
    """Metrics of the last steps: "tflops_per_device", and "mfu" if the peak of the device is known.

    Args:
        flops: training FLOPs of the model over all processes. Repeated ones (activation checkpointing) do
            not count, as usual for the MFU.
        seconds: in which they took place.
    """
    tflops = flops / seconds / processes.world / 1e12
    peak = _peak_tflops(processes.device, precision_on(engine, processes.device))
    values = {"tflops_per_device": tflops} | ({} if peak is None else {"mfu": tflops / peak})
    return {name: float(f"{value:.4g}") for name, value in values.items()}


def _peak_tflops(device: torch.device, precision: str) -> float | None:
    gpu = find_gpu(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    return None if gpu is None else gpu.peak_tflops(precision)
