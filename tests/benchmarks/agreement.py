"""Cost of the agreement on stop flags, at up to 1,024 ranks, against a gloo all-reduce at each step.

python -m tests.benchmarks.agreement [--ranks 64 256 1024] [--gloo 16 64 96] [--rounds 40]

A real TCPStore runs in its own process, as in rank 0. Two processes drive the `RankFlags` of all ranks one
after the other, each rank with its own connection, in rounds without pauses. For gloo each rank is a thread.
CPU times are valid on a busy machine, wall times are not.
"""

import argparse
import multiprocessing
import os
import resource
import statistics
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from kinemae.pretrain.runtime.rank_flags import INTERVAL_S, RankFlags

DRIVERS = 2
STEPS_S = (0.04, 0.4)
TIMEOUT = timedelta(seconds=300)


class CountingStore:
    """A connection that counts its requests."""

    def __init__(self, port: int):
        self._store = dist.TCPStore("127.0.0.1", port, timeout=TIMEOUT, wait_for_workers=False)
        self.requests = 0

    def add(self, key: str, amount: int) -> int:
        self.requests += 1
        return self._store.add(key, amount)

    def delete_key(self, key: str) -> bool:
        self.requests += 1
        return self._store.delete_key(key)


class Driven(NamedTuple):
    """Measurements of one driver: of all rounds together, and the wall time of a rank in a round."""

    requests: int
    cpu_s: float
    wall_s: float
    rank_s: float


def serve(parent: Connection) -> None:
    """Keep a store; reply to each message with the CPU time of this process and its number of keys."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=TIMEOUT)
    parent.send(store.port)
    while parent.recv():
        parent.send((time.process_time(), store.num_keys()))


def drive(parent: Connection, port: int, world: int, rounds: int) -> None:
    """Take part in rounds with a share of the ranks."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    with ThreadPoolExecutor(64) as pool:  # each connection waits for a name lookup
        stores = list(pool.map(CountingStore, [port] * (world // DRIVERS)))
    ranks = [RankFlags(store, world=world, on_phase=lambda phase: None, interval_s=0.0) for store in stores]

    def run(count: int, spent_s: list[float]) -> None:
        for _ in range(count):
            for rank in ranks:
                begun_s = time.monotonic()
                rank.read()
                rank.post(stop=0, is_writing=False)
                spent_s.append(time.monotonic() - begun_s)

    run(2, [])
    parent.send("ready")
    parent.recv()
    requests, cpu_s, begun_s = sum(store.requests for store in stores), time.process_time(), time.monotonic()
    spent_s: list[float] = []
    run(rounds, spent_s)
    wall_s, cpu_s = time.monotonic() - begun_s, time.process_time() - cpu_s
    requests = sum(store.requests for store in stores) - requests
    parent.send(Driven(requests, cpu_s, wall_s, statistics.median(spent_s)))
    parent.recv()


def started(target: Callable[..., None], *arguments: Any) -> Connection:
    """Start a process and return its pipe."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    context.Process(target=target, args=(theirs, *arguments), daemon=True).start()
    return ours


def measure_store(world: int, rounds: int) -> str:
    """A row of the table of the store."""
    server = started(serve)
    port = server.recv()
    drivers = [started(drive, port, world, rounds) for _ in range(DRIVERS)]
    for driver in drivers:
        driver.recv()

    def server_state() -> tuple[float, int]:
        server.send(True)
        cpu_s, keys = server.recv()
        return cpu_s, keys

    before_s, keys_before = server_state()
    for driver in drivers:
        driver.send(True)
    driven: list[Driven] = [driver.recv() for driver in drivers]
    after_s, keys = server_state()
    assert keys <= keys_before, f"the store grew from {keys_before} to {keys} keys"
    for pipe in (*drivers, server):
        pipe.send(False)
    requests = sum(each.requests for each in driven)
    server_s, cpu_s = after_s - before_s, sum(each.cpu_s for each in driven) / rounds / world
    wall_s, rank_s = max(each.wall_s for each in driven), max(each.rank_s for each in driven)
    cells = [
        f"{requests / rounds:.0f}",
        f"{requests / wall_s:.0f}",
        f"{1e6 * server_s / requests:.1f}",
        f"{1e3 * server_s / rounds:.1f}",
        f"{1e3 * wall_s / rounds:.0f}",
        f"{1e6 * rank_s:.0f}",
        f"{1e6 * cpu_s:.0f}",
        *(f"{1e6 * cpu_s / max(1, int(INTERVAL_S / step_s)):.1f}" for step_s in STEPS_S),
    ]
    return f"{world:6d}" + "".join(f"{cell:>14s}" for cell in cells)


def measure_gloo(world: int, repeats: int) -> str:
    """A row of the table of gloo."""
    store, start, walls_s = dist.HashStore(), threading.Barrier(world), []
    counts: list[float] = []
    descriptors = len(os.listdir("/proc/self/fd"))

    def run(rank: int) -> None:
        group = dist.ProcessGroupGloo(store, rank, world, TIMEOUT)
        values = torch.zeros(2, dtype=torch.int64)
        options = dist.AllreduceOptions()
        options.reduceOp = dist.ReduceOp.MAX
        group.allreduce([values], options).wait()
        start.wait()
        if rank == 0:
            counts.extend((time.process_time(), len(os.listdir("/proc/self/fd")) - descriptors))
        start.wait()
        for _ in range(repeats):
            begun_s = time.monotonic()
            group.allreduce([values], options).wait()
            if rank == 0:
                walls_s.append(time.monotonic() - begun_s)
        start.wait()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    cpu_s = (time.process_time() - counts[0]) / repeats / world
    return f"{world:6d}{1e3 * statistics.median(walls_s):14.1f}{1e6 * cpu_s:14.0f}{counts[1] / world:14.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="*", default=[64, 256, 1024], help="even numbers")
    parser.add_argument("--gloo", type=int, nargs="*", default=[16, 64, 96])
    parser.add_argument("--rounds", type=int, default=40)
    chosen = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    print("store: CPU of its process per request and per round; wall time of a round; wall and CPU time of a")
    print("rank in a round; CPU time of a rank per step")
    columns = ("requests", "requests/s", "store CPU us", "CPU ms/round", "wall ms", "rank us", "CPU us")
    steps = [f"at {step_s:g} s" for step_s in STEPS_S]
    print(" ranks" + "".join(f"{column:>14s}" for column in (*columns, *steps)), flush=True)
    for world in chosen.ranks:
        print(measure_store(world, chosen.rounds), flush=True)
    print("gloo: an all-reduce of two numbers; CPU time and descriptors per rank")
    print(" ranks" + "".join(f"{column:>14s}" for column in ("wall ms", "CPU us", "descriptors")), flush=True)
    for world in chosen.gloo:
        print(measure_gloo(world, chosen.rounds), flush=True)


if __name__ == "__main__":
    main()
