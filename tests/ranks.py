"""The processes of one run, started by hand, so that a test can do something to one of them."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_PATIENCE_S = 180.0


class Ranks:
    """Processes of `python -m MODULE ARGUMENTS`, by rank; what they say goes to files."""

    def __init__(self, repo: Path, folder: Path, *arguments: str, world: int = 2):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        common = {
            "WORLD_SIZE": str(world),
            "LOCAL_WORLD_SIZE": str(world),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "OMP_NUM_THREADS": "1",
        }
        self._logs = [folder / f"said-by-{rank}.txt" for rank in range(world)]
        self.processes = []
        for rank, log in enumerate(self._logs):
            with log.open("w") as file:
                self.processes.append(
                    subprocess.Popen(
                        [sys.executable, "-m", *arguments],
                        cwd=repo,
                        env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                        stdout=file,
                        stderr=file,
                    )
                )

    def said(self, rank: int) -> str:
        """What a process has said so far."""
        return self._logs[rank].read_text(encoding="utf-8", errors="replace")

    def wait_until(self, is_so: Callable[[], bool], *, while_all_run: bool = True) -> None:
        """Wait for a condition."""
        deadline_s = time.monotonic() + _PATIENCE_S
        while not is_so():
            ended = [rank for rank, process in enumerate(self.processes) if process.poll() is not None]
            if while_all_run:
                assert not ended, f"rank {ended[0]} ended too soon:\n{self.said(ended[0])}"
            assert time.monotonic() < deadline_s, self.said(0)
            time.sleep(0.02)

    def exit_code(self, rank: int) -> int:
        """Wait for a process to end."""
        return self.processes[rank].wait(timeout=_PATIENCE_S)

    def exit_codes(self) -> list[int]:
        """Wait for all of them."""
        return [self.exit_code(rank) for rank in range(len(self.processes))]


@contextmanager
def started(repo: Path, folder: Path, *arguments: str, world: int = 2) -> Iterator[Ranks]:
    """Start the processes; none of them outlives the block."""
    ranks = Ranks(repo, folder, *arguments, world=world)
    try:
        yield ranks
    finally:
        for process in ranks.processes:
            process.kill()
            process.wait()
