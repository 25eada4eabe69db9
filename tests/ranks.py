"""Start the processes of a run on this machine without a launcher."""

import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

from kinemae.pretrain.runtime.metrics import read_metrics
from tests.forked import ForkedPython

_PATIENCE_S = 600.0


def free_port() -> int:
    """Return a free port of this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def start_ranks(world: int, *command: str, said: Sequence[IO[str]] | None = None) -> list[ForkedPython]:
    """Start `python COMMAND` once for each rank, as a launcher would.

    Args:
        said: output files by rank; None: pipes.
    """
    job = {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1"}
    port = str(free_port())
    return [
        ForkedPython(
            *command,
            environment={**job, "MASTER_PORT": port, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=said[rank] if said else subprocess.PIPE,
            stderr=said[rank] if said else subprocess.PIPE,
        )
        for rank in range(world)
    ]


def run_ranks(world: int, *command: str) -> None:
    """Run the processes to their end, which must be a success."""
    ranks = start_ranks(world, *command)
    try:
        for rank in ranks:
            _, errors = rank.communicate(timeout=300)
            assert rank.returncode == 0, errors
    finally:
        for rank in ranks:
            rank.kill()


def keys_by_step(run_dir: Path) -> dict[int, list[str]]:
    """Sample keys from the logs of all ranks."""
    found: dict[int, list[str]] = {}
    for path in sorted((run_dir / "samples").glob("rank-*.jsonl")):
        for line in read_metrics(path):
            found.setdefault(line["step"], []).extend(line["keys"])
    return found


class Ranks:
    """Two processes of `python -m MODULE ARGUMENTS`, with their output in files of a folder."""

    def __init__(self, folder: Path, *arguments: str):
        self._logs = [folder / f"said-by-{rank}.txt" for rank in range(2)]
        with ExitStack() as files:
            said = [files.enter_context(log.open("w")) for log in self._logs]
            self.processes = start_ranks(2, "-m", *arguments, said=said)

    def output(self, rank: int) -> str:
        """Return the output of a process so far."""
        return self._logs[rank].read_text(encoding="utf-8", errors="replace")

    def wait_until(self, is_so: Callable[[], bool], *, while_all_run: bool = True) -> None:
        """Wait for a condition."""
        deadline_s = time.monotonic() + _PATIENCE_S
        while not is_so():
            ended = [rank for rank, process in enumerate(self.processes) if process.poll() is not None]
            if while_all_run:
                assert not ended, f"rank {ended[0]} ended too soon:\n{self.output(ended[0])}"
            assert time.monotonic() < deadline_s, self.output(0)
            time.sleep(0.02)

    def exit_code(self, rank: int) -> int:
        """Wait for a process to end."""
        return self.processes[rank].wait(timeout=_PATIENCE_S)

    def exit_codes(self) -> list[int]:
        """Wait for all processes."""
        return [self.exit_code(rank) for rank in range(len(self.processes))]


@contextmanager
def started(folder: Path, *arguments: str) -> Iterator[Ranks]:
    """Start the processes and kill them at the end of the block."""
    ranks = Ranks(folder, *arguments)
    try:
        yield ranks
    finally:
        for process in ranks.processes:
            process.kill()
            process.wait()
