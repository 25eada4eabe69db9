"""A job whose processes do as they are told in a moment: real launcher files around a room of ten lines."""

import shutil
from pathlib import Path

from launch.freezing import SOURCES
from launch.job import Job, describe

# Its arguments are Python statements; `rank`, `start` (of this process, from 0) and `stopped(number)` are there.
# Where a signal comes, the process saves, as it were, and leaves with the code of the contract.
ROOM = """
import os, signal, sys, time
from pathlib import Path

rank = int(os.environ["RANK"])
log = Path(os.environ["TOLD"]) / f"starts-{rank}"
start = len(log.read_text().splitlines()) if log.exists() else 0
with log.open("a") as file:
    file.write(" ".join(os.environ[name] for name in ("WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT")) + "\\n")
for number in (signal.SIGTERM, signal.SIGUSR1):
    signal.signal(number, lambda number, frame: sys.exit(128 + number))
exec(sys.argv[1])
"""


def fake_job(folder: Path, python: str, statements: str) -> Job:
    """A job in `folder / "run"` whose processes execute the statements; `starts(job, rank)` tells how often."""
    code = folder / "code"
    shutil.copytree(SOURCES / "launch", code / "launch", ignore=shutil.ignore_patterns("__pycache__"))
    (code / "pretrain").mkdir()
    (code / "pretrain" / "__init__.py").touch()
    (code / "pretrain" / "__main__.py").write_text(ROOM)
    run = folder / "run"
    (run / "launch").mkdir(parents=True)
    (run / "logs").mkdir()
    job = Job(
        argv=["pretrain", statements],
        cwd=str(folder),
        code=str(code),
        python=python,
        environment={"TOLD": str(run)},
        commit=None,
        run_dir=str(run),
        config="none",
    )
    job.path.write_text(describe(job))
    return job


def starts(job: Job, rank: int) -> list[list[str]]:
    """WORLD_SIZE, LOCAL_RANK and MASTER_PORT of each start of a process so far."""
    log = Path(job.run_dir) / f"starts-{rank}"
    return [line.split() for line in log.read_text().splitlines()] if log.exists() else []
