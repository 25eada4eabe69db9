"""A real process group on all nodes: check its sums and measure its all-reduce.

`group` runs in the probe and starts this node's ranks. Each rank runs `rank_main` in its own process, because
importing torch or a broken driver may crash or hang it.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

_MB = 1_000_000
_SOURCE = globals().get("__source__")  # set if the doctor sent this file as text
_ENTRY = "import sys;exec(compile(sys.stdin.read(),'rank','exec'),g:={'__name__':'rank'});g['rank_main']()"
_COUNT = 4096  # values of each dtype whose sum is checked; odd sizes too, see `wrong_sums`
_TAIL = 800


def group(
    *, processes: int, first_rank: int, world_size: int, master: tuple[str, int], device: str, limit_s: float
) -> list[dict[str, Any]]:
    """Start this node's ranks and wait for them, at most `limit_s`.

    Args:
        master: host and port of rank 0.
        device: cuda or cpu.

    Returns:
        For each rank its results, `stage` (the last one that it began) and, unless it is "done", `failed`.
    """
    source = _SOURCE or Path(__file__).read_text(encoding="utf-8")
    ranks = []
    for local in range(processes):
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "RANK": str(first_rank + local),
            "WORLD_SIZE": str(world_size),
            "LOCAL_RANK": str(local),
            "LOCAL_WORLD_SIZE": str(processes),
            "MASTER_ADDR": master[0],
            "MASTER_PORT": str(master[1]),
        }
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        command = [sys.executable, "-c", _ENTRY, device, str(limit_s)]
        rank = subprocess.Popen(command, env=environment, text=True, **pipes)  # type: ignore[call-overload]
        rank.stdin.write(source)
        rank.stdin.close()
        ranks.append(rank)
    end = time.monotonic() + limit_s
    return [_await(rank, end, limit_s) for rank in ranks]


def _await(rank: Any, end: float, limit_s: float) -> dict[str, Any]:
    rank.stdin = None  # closed already; communicate() would flush it
    try:
        output, errors = rank.communicate(timeout=max(0.5, end - time.monotonic()))
        failed = f"ended with exit code {rank.returncode}: {errors.strip()[-_TAIL:]}"
    except subprocess.TimeoutExpired:
        rank.kill()
        output, errors = rank.communicate()
        failed = f"not done after {limit_s:g} s"
    result: dict[str, Any] = {"stage": "starting"}
    for line in output.splitlines():
        if line.startswith("{"):
            result |= json.loads(line)
    return result if result["stage"] == "done" else {**result, "failed": failed}


def rank_main() -> None:
    """Join the group, check sums, measure; report each stage before it begins, to name it after a hang."""
    from datetime import timedelta

    import torch  # imported in this process only
    import torch.distributed as dist

    device, limit_s = sys.argv[1], float(sys.argv[2])
    signal.alarm(int(limit_s) + 5)  # end this process even if the probe dies
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    nccl = ".".join(map(str, torch.cuda.nccl.version())) if torch.cuda.is_available() else None
    _report(stage="device", torch=torch.__version__, cuda=torch.version.cuda, nccl=nccl)
    backend = "nccl" if device == "cuda" else "gloo"
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        _report(name=torch.cuda.get_device_name(), free_bytes=torch.cuda.mem_get_info()[0])
    _report(stage="joining")
    dist.init_process_group(backend, rank=rank, world_size=world_size, timeout=timedelta(seconds=limit_s / 2))
    _report(stage="summing")
    _report(wrong=wrong_sums(dist.all_reduce, rank, world_size, device))
    _report(wrong_from=wrong_senders(dist.broadcast, rank, world_size, device))
    _report(stage="timing")
    _report(copy_mb_per_s=_copy_rate(device), bus_mb_per_s=_bus_rate(device))
    dist.barrier()
    _report(stage="done")
    sys.stdout.flush()
    os._exit(0)  # the backend's clean-up may wait for ranks that have ended


def _report(**values: Any) -> None:
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()


def wrong_sums(all_reduce: Callable[[Any], Any], rank: int, world: int, device: str) -> str | None:
    """Sum integers that float32 represents exactly, and compare with the known result.

    Returns:
        The first difference; None if all sums of all sizes are correct.
    """
    import torch

    for dtype in (torch.int64, torch.float32):
        for size in (1, 1000, 65_537, 1 << 20):
            pattern = (torch.arange(size, device=device) % 7).to(dtype)
            values = pattern * (rank + 1)
            all_reduce(values)
            expected = pattern * (world * (world + 1) // 2)
            places = (values != expected).nonzero().flatten()
            if len(places):
                first = int(places[0])
                return (
                    f"{len(places)} of {size} values of {dtype} are wrong; "
                    f"at {first} expected {expected[first].item()}, got {values[first].item()}"
                )
    return None


def wrong_senders(broadcast: Callable[..., Any], rank: int, world: int, device: str) -> list[int]:
    """The ranks, among the first 64, whose broadcast arrives changed."""
    import torch

    wrong = []
    for sender in range(min(world, 64)):
        sent = torch.arange(_COUNT, device=device) * (sender + 3)
        values = sent.clone() if rank == sender else torch.zeros_like(sent)
        broadcast(values, src=sender)
        if not torch.equal(values, sent):
            wrong.append(sender)
    return wrong


def _copy_rate(device: str) -> float:
    """MB/s of copying memory while all ranks do so."""
    import torch

    source = torch.ones(8 * _MB, device=device)
    target = torch.empty_like(source)
    return source.nbytes / _MB / _median_s(lambda: target.copy_(source), 5, device)


def _bus_rate(device: str) -> float:
    """MB/s on the busiest link of a ring: 2 (n - 1) / n of the bytes per all-reduce."""
    import torch
    import torch.distributed as dist

    world = dist.get_world_size()
    small = torch.ones(_MB // 4, device=device)
    trial_s = torch.tensor([_median_s(lambda: dist.all_reduce(small), 3, device)], device=device)
    dist.broadcast(trial_s, src=0)  # all ranks use the same size
    most = 256 if device == "cuda" else 32
    megabytes = int(min(most, max(1, 0.4 / max(float(trial_s), 1e-6))))
    values = torch.ones(megabytes * _MB // 4, device=device)
    seconds = _median_s(lambda: dist.all_reduce(values), 5, device)
    return 2 * (world - 1) / world * megabytes / seconds


def _median_s(operation: Callable[[], Any], repeats: int, device: str) -> float:
    import torch

    seconds = []
    for _ in range(repeats + 1):  # the first one opens connections
        began = time.monotonic()
        operation()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.monotonic() - began)
    return sorted(seconds[1:])[repeats // 2]
