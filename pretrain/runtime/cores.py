"""Divide the cores of a machine among the processes of a run: loader workers and threads of each."""

import os
from collections.abc import Sequence

import torch

from kinemae.data_tools.command import log
from kinemae.data_tools.stream.worker_setup import core_limits, cores_per_process, resolve_num_workers
from kinemae.pretrain.runtime.processes import Processes


def share_cores(processes: Processes, *, workers: int, cpu_threads: int) -> int:
    """Collective. Set the threads of this process and log the division of cores.

    On CUDA the threads are unchanged. On the CPU neither threads nor loader workers wait for a core.

    Args:
        workers: data.num_workers.
        cpu_threads: engine.cpu_threads.

    Returns:
        The loader workers of this process.
    """
    own = core_limits()
    cores = cores_per_process(own, processes.gather(own))
    count = resolve_num_workers(workers, cores)
    if cpu_threads:
        torch.set_num_threads(cpu_threads)
    elif processes.device.type == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, cores - count))
    shares = processes.gather_to_first((cores, count, torch.get_num_threads()))
    if shares:
        all_cores, all_counts, all_threads = (_span(column) for column in zip(*shares, strict=True))
        log.info(
            "each process: %s of its machine's cores, %s threads, %s loader workers (data.num_workers=%d)",
            all_cores, all_threads, all_counts, workers,
        )  # fmt: skip
    return count


def _span(numbers: Sequence[int]) -> str:
    least, most = min(numbers), max(numbers)
    return str(least) if least == most else f"{least} to {most}"
