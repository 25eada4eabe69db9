"""Processes of one run, found by their command lines and environments, and their roles."""

import os
import signal
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")


@dataclass(frozen=True, kw_only=True)
class ProcessInfo:
    """State of one process.

    Attributes:
        began: start time in clock ticks; `pid` and `began` identify a process.
        state: "R", "S", "T", ... as in proc(5).
        cpu_ticks: used CPU time.
        rank: rank of a process of the job, else None.
    """

    pid: int
    parent: int
    began: int
    state: str
    cpu_ticks: int
    argv: tuple[str, ...]
    rank: int | None

    @property
    def name(self) -> tuple[int, int]:
        return self.pid, self.began

    def send(self, number: signal.Signals) -> None:
        """Send a signal, unless the process has ended and its PID is reused."""
        now = read_process(self.pid)
        if now is not None and now.name == self.name:
            os.kill(self.pid, number)


def read_process(pid: int) -> ProcessInfo | None:
    """Read the state of a process; None if it has ended or is a zombie."""
    try:
        argv = (PROC / str(pid) / "cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
        fields = (PROC / str(pid) / "stat").read_text(errors="replace").rpartition(") ")[2].split()
        entries = (PROC / str(pid) / "environ").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return None
    if fields[0] in "ZX" or not argv:
        return None
    environment = dict(entry.partition("=")[::2] for entry in entries)
    module = argv[argv.index("-m") + 1 :][:2] if "-m" in argv else []
    is_pretrain = module == ["kinemae", "pretrain"] and "--dry-run" not in argv
    is_job = is_pretrain and "RANK" in environment
    return ProcessInfo(
        pid=pid,
        parent=int(fields[1]),
        began=int(fields[19]),
        state=fields[0],
        cpu_ticks=int(fields[11]) + int(fields[12]),
        argv=tuple(argv),
        rank=int(environment["RANK"]) if is_job else None,
    )


def processes_of(run_dir: Path) -> list[ProcessInfo]:
    """List processes that name the run folder, without this process and its parents."""
    own = set(_ancestors(os.getpid()))
    pids = [int(path.name) for path in PROC.iterdir() if path.name.isdigit()]
    found = (read_process(pid) for pid in pids if pid not in own and _mentions(pid, bytes(run_dir)))
    return [seen for seen in found if seen is not None]


def ranks(processes: Iterable[ProcessInfo]) -> list[ProcessInfo]:
    """The training processes of the job, by rank."""
    return sorted(
        (seen for seen in processes if seen.rank is not None), key=lambda seen: (seen.rank, seen.pid)
    )


def agents(processes: Sequence[ProcessInfo]) -> list[ProcessInfo]:
    """The agents of the hosts: the parents of the ranks."""
    parents = {seen.parent for seen in processes if seen.rank is not None}
    return [seen for seen in processes if seen.pid in parents and _is_agent(seen.argv)]


def loader_workers(processes: Iterable[ProcessInfo]) -> list[ProcessInfo]:
    """Loader workers of all ranks: children of the fork server of each rank."""
    of_ranks = {seen.pid for seen in ranks(processes)}
    servers = {seen.pid for seen in processes if seen.parent in of_ranks and "forkserver" in str(seen.argv)}
    return [seen for seen in processes if seen.parent in servers]


def _is_agent(argv: Sequence[str]) -> bool:
    return any(word.endswith("/agent.py") for word in argv[1:4])


def _mentions(pid: int, text: bytes) -> bool:
    try:
        return any(text in (PROC / str(pid) / name).read_bytes() for name in ("cmdline", "environ"))
    except OSError:
        return False


def _ancestors(pid: int) -> list[int]:
    line = []
    while pid:
        line.append(pid)
        stat = (PROC / str(pid) / "stat").read_text(errors="replace")
        pid = int(stat.rpartition(") ")[2].split()[1])
    return line
