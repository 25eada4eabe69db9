"""The processes of a run on this machine, started without a launcher."""

import os
import socket
import subprocess
import sys

from tests.conftest import REPO


def start_ranks(world: int, *command: str) -> list[subprocess.Popen[str]]:
    """Start `python COMMAND` once for each rank, as a launcher would."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    job = {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1"}
    return [
        subprocess.Popen(
            [sys.executable, *command],
            cwd=REPO,
            env={
                **os.environ, **job, "OMP_NUM_THREADS": "1",
                "MASTER_PORT": str(port), "RANK": str(rank), "LOCAL_RANK": str(rank),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]  # fmt: skip
