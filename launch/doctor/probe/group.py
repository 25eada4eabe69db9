"""A real process group over all nodes: do sums come out right, and how fast do the bytes travel?

`group` runs in the probe and starts this node's ranks; `rank_main` is what a rank runs, in a process of its
own, because an import of torch or a broken driver may crash or hang it.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

_MB = 1_000_000
_SOURCE = globals().get("__source__")  # set where this file came over a wire and lies on no disk
_ENTRY = "import sys;exec(compile(sys.stdin.read(),'rank','exec'),g:={'__name__':'rank'});g['rank_main']()"
_COUNT = 4096  # values of each dtype whose sum is checked; odd sizes too, see `wrong_sums`
_TAIL = 800


def group(
    *, processes: int, first_rank: int, world: int, meet: tuple[str, int], device: str, limit_s: float
) -> list[dict[str, Any]]:
    """Start this node's ranks and wait for them, at most `limit_s`.

    Args:
        meet: host and port of rank 0.
        device: cuda or cpu.

    Returns:
        For each rank what it found, `stage` (the last thing it began) and, unless that is "done", `failed`.
    """
    source = _SOURCE or Path(__file__).read_text(encoding="utf-8")
    ranks = []
    for local in range(processes):
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "RANK": str(first_rank + local),
            "WORLD_SIZE": str(world),
            "LOCAL_RANK": str(local),
            "LOCAL_WORLD_SIZE": str(processes),
            "MASTER_ADDR": meet[0],
            "MASTER_PORT": str(meet[1]),
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
    rank.stdin = None  # closed already; communicate would flush it
    try:
        told, complaint = rank.communicate(timeout=max(0.5, end - time.monotonic()))
        failed = f"left with exit code {rank.returncode}: {complaint.strip()[-_TAIL:]}"
    except subprocess.TimeoutExpired:
        rank.kill()
        told, complaint = rank.communicate()
        failed = f"not done after {limit_s:g} s"
    found: dict[str, Any] = {"stage": "starting"}
    for line in told.splitlines():
        if line.startswith("{"):
            found |= json.loads(line)
    return found if found["stage"] == "done" else {**found, "failed": failed}


def rank_main() -> None:
    """Join, sum, time, pair up; each stage is told before it begins, so that a hang has a name."""
    from datetime import timedelta

    import torch  # the only file here that needs it, and only in this process
    import torch.distributed as dist

    device, limit_s = sys.argv[1], float(sys.argv[2])
    signal.alarm(int(limit_s) + 5)  # should the probe die, this process does not stay behind
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    nccl = ".".join(map(str, torch.cuda.nccl.version())) if torch.cuda.is_available() else None
    _tell(stage="device", torch=torch.__version__, cuda=torch.version.cuda, nccl=nccl)
    backend = "nccl" if device == "cuda" else "gloo"
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        _tell(name=torch.cuda.get_device_name(), free_bytes=torch.cuda.mem_get_info()[0])
    _tell(stage="joining")
    dist.init_process_group(backend, rank=rank, world_size=world, timeout=timedelta(seconds=limit_s / 2))
    _tell(stage="summing")
    _tell(wrong=wrong_sums(dist.all_reduce, rank, world, device))
    _tell(wrong_from=wrong_senders(dist.broadcast, rank, world, device))
    _tell(stage="timing")
    _tell(copy_mb_per_s=_copy_rate(device), bus_mb_per_s=_bus_rate(device))
    _tell(stage="pairing", pairs=_pair_rates(device))
    dist.barrier()
    _tell(stage="done")
    sys.stdout.flush()
    os._exit(0)  # a backend's own clean-up may wait for ranks that have left


def _tell(**found: Any) -> None:
    sys.stdout.write(json.dumps(found) + "\n")
    sys.stdout.flush()


def wrong_sums(all_reduce: Callable[[Any], Any], rank: int, world: int, device: str) -> str | None:
    """Sum whole numbers that float32 holds exactly over all ranks, and compare with the known result.

    Returns:
        What differed, for the first size that did; None where every value of every size is right.
    """
    import torch

    for dtype in (torch.int64, torch.float32):
        for size in (1, 1000, 65_537, 1 << 20):
            pattern = (torch.arange(size, device=device) % 7).to(dtype)
            values = pattern * (rank + 1)
            all_reduce(values)
            wanted = pattern * (world * (world + 1) // 2)
            places = (values != wanted).nonzero().flatten()
            if len(places):
                first = int(places[0])
                return (
                    f"{len(places)} of {size} values of {dtype} are wrong; "
                    f"at {first} expected {wanted[first].item()}, got {values[first].item()}"
                )
    return None


def wrong_senders(broadcast: Callable[..., Any], rank: int, world: int, device: str) -> list[int]:
    """Ranks whose broadcast arrives here other than it was sent; of the first 64."""
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
    """MB/s of copying memory while all other ranks do so too."""
    import torch

    source = torch.ones(8 * _MB, device=device)
    target = torch.empty_like(source)
    return source.nbytes / _MB / _median_s(lambda: target.copy_(source), 5, device)


def _bus_rate(device: str) -> float:
    """MB/s on the busiest link of a ring: 2 (n - 1) / n of the bytes in the time of one all-reduce."""
    import torch
    import torch.distributed as dist

    world = dist.get_world_size()
    small = torch.ones(_MB // 4, device=device)
    trial_s = torch.tensor([_median_s(lambda: dist.all_reduce(small), 3, device)], device=device)
    dist.broadcast(trial_s, src=0)  # all must choose the same size
    most = 256 if device == "cuda" else 32
    megabytes = int(min(most, max(1, 0.4 / max(float(trial_s), 1e-6))))
    values = torch.ones(megabytes * _MB // 4, device=device)
    seconds = _median_s(lambda: dist.all_reduce(values), 5, device)
    return 2 * (world - 1) / world * megabytes / seconds


def _median_s(work: Callable[[], Any], repeats: int, device: str) -> float:
    import torch

    seconds = []
    for _ in range(repeats + 1):  # the first one sets connections up
        began = time.monotonic()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.monotonic() - began)
    return sorted(seconds[1:])[repeats // 2]


def rounds(nodes: int) -> list[list[tuple[int, int]]]:
    """Who meets whom: in a round every node at most once, over all rounds each pair once (circle method)."""
    seats: list[int | None] = list(range(nodes)) + ([None] if nodes % 2 else [])
    plan = []
    for _ in range(len(seats) - 1):
        facing = zip(seats[: len(seats) // 2], reversed(seats[len(seats) // 2 :]), strict=True)
        plan.append([(a, b) for a, b in facing if a is not None and b is not None])
        seats.insert(1, seats.pop())
    return plan


def _pair_rates(device: str) -> dict[str, float]:
    """MB/s between this node's first rank and those of others, pair by pair; two nodes need no pairs."""
    import torch
    import torch.distributed as dist

    firsts = _first_ranks()
    rates: dict[str, float] = {}
    if len(firsts) < 3:
        return rates
    sent = torch.ones(4 * _MB // 4, device=device)
    got = torch.empty_like(sent)
    for pairs in rounds(len(firsts))[:8]:
        dist.barrier()
        for a, b in pairs:
            if dist.get_rank() in (firsts[a], firsts[b]):
                other = firsts[b] if dist.get_rank() == firsts[a] else firsts[a]
                seconds = _median_s(lambda other=other: _swap(sent, got, other), 3, device)  # type: ignore[misc]
                rates[str(other)] = sent.nbytes / _MB / seconds
    return rates


def _first_ranks() -> Sequence[int]:
    import torch.distributed as dist

    places: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(places, int(os.environ["LOCAL_RANK"]))
    return [rank for rank, local in enumerate(places) if local == 0]


def _swap(sent: Any, got: Any, other: int) -> None:
    import torch.distributed as dist

    work = dist.batch_isend_irecv([dist.P2POp(dist.isend, sent, other), dist.P2POp(dist.irecv, got, other)])
    for part in work:
        part.wait()
