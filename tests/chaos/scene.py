"""One run under a launcher, observed from outside; `start` repeats its command."""

import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from tests.chaos.disks import Disk
from tests.chaos.seen import ProcessInfo, agents, loader_workers, processes_of, ranks
from tests.launch.hosts import Host

Found = TypeVar("Found")

FAULTS_FOLDER = "faults"  # beside the run folder, see hook/sitecustomize.py
BOUND_S = 180.0  # limit of every reaction, also on a busy machine
_TICK_S = 0.02
_LAST_LINES = 60
_TAIL_BYTES = 4096  # of metrics.jsonl: more than a few lines


class WrongReaction(AssertionError):
    """The reaction to a fault is not the one in docs/reliability.md."""


class Scene:
    """A run folder, its launch command, and their state as seen from outside.

    Attributes:
        hosts: hosts of the job's processes, if not this machine.
        full_disk_steps: first and last steps while the log disk was full; their lines may be missing.
        damaged: damaged checkpoints, as listed by `committed`.
        worlds: the world sizes of the run so far.
    """

    def __init__(
        self,
        run_dir: Path,
        command: Sequence[str],
        *,
        repo: Path,
        disk: Disk | None = None,
        hosts: Sequence[Host] = (),
    ):
        self.run_dir = run_dir
        self.command = list(command)
        self.disk = disk
        self.hosts = list(hosts)
        self.checkpoint_disk: Disk | None = None
        self.full_disk_steps: list[tuple[int, int]] = []
        self.damaged: set[tuple[int, int]] = set()
        self.worlds: set[int] = set()
        self._repo = repo
        self.terminal = run_dir.parent / "terminal.log"
        self.launcher: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the launch command, as a user or a scheduler does."""
        if (
            signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        ):  # set by a shell's `&`, and inherited by children
            signal.signal(signal.SIGINT, signal.default_int_handler)
        with self.terminal.open("ab") as output:
            self.launcher = subprocess.Popen(
                self.command,
                cwd=self._repo,
                env={**os.environ, "OMP_NUM_THREADS": "1", "KINEMAE_CHAOS": str(self.run_dir)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    @contextlib.contextmanager
    def fault_inside(self, name: str) -> Iterator[Callable[[], set[int]]]:
        """Turn a fault of `hook/sitecustomize.py` on; the function returns the processes that met it."""
        folder = self.run_dir.parent / FAULTS_FOLDER
        folder.mkdir(exist_ok=True)
        for mark in folder.glob(f"{name}*"):
            mark.unlink()
        (folder / name).touch()
        try:
            yield lambda: {int(mark.name.rpartition("-")[2]) for mark in folder.glob(f"{name}-*")}
        finally:
            (folder / name).unlink()

    def processes(self) -> list[ProcessInfo]:
        return processes_of(self.run_dir)

    def ranks(self) -> list[ProcessInfo]:
        return ranks(self.processes())

    def agents(self) -> list[ProcessInfo]:
        return agents(self.processes())

    def workers(self) -> list[ProcessInfo]:
        return loader_workers(self.processes())

    def exit_code(self) -> int | None:
        """Exit code of the launcher; None while it runs."""
        return None if self.launcher is None else self.launcher.poll()

    def has_ended(self) -> bool:
        """Check that the launcher and all its processes have ended."""
        return self.exit_code() is not None and not self.processes()

    def step(self) -> int:
        """Number of steps by the last line of the metrics or the newest checkpoint."""
        return max(self.metrics_step(), self.newest_intact())

    def metrics_step(self) -> int:
        """Number of steps by the metrics alone; it decreases when a run continues from a checkpoint."""
        path = self.run_dir / "metrics.jsonl"
        tail = path.read_bytes()[-_TAIL_BYTES:].decode() if path.exists() else ""
        steps = re.findall(r'^{"step": (\d+),.*}\n', tail, re.M)
        return int(steps[-1]) + 1 if steps else 0

    def committed(self) -> list[tuple[int, int]]:
        """Complete checkpoints, oldest first: step and time of writing."""
        found = []
        for path in (self.run_dir / "checkpoints").glob("step-*[0-9]"):
            with contextlib.suppress(FileNotFoundError):  # dropped meanwhile
                found.append((int(path.name.removeprefix("step-")), path.stat().st_mtime_ns))
        return sorted(found)

    def newest_intact(self) -> int:
        """Step of the newest checkpoint without injected damage; 0 for none."""
        return max([0, *(step for step, written in self.committed() if (step, written) not in self.damaged)])

    def checkpoint(self, step: int) -> Path:
        return self.run_dir / "checkpoints" / f"step-{step:08d}"

    def output(self) -> str:
        """Output of the launcher in all starts."""
        return self.terminal.read_text(errors="replace") if self.terminal.exists() else ""

    def rank_log(self) -> str:
        """Output of rank 0 in all starts, also of those without a connection to the launcher."""
        path = self.run_dir / "logs" / "rank-00000.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def resumed_at(self, offset: int) -> int | None:
        """Step at which the run last continued, by the log of rank 0 after that many characters."""
        found = re.findall(r"continuing at step (\d+)", self.rank_log()[offset:])
        return int(found[-1]) if found else None

    def wait_for(
        self, what: str, look: Callable[[], Found], *, bound_s: float = BOUND_S, while_it_runs: bool = False
    ) -> Found:
        """Poll `look` until it returns a true value.

        Args:
            while_it_runs: fail if the launcher ends.

        Raises:
            WrongReaction: the time is over, or the launcher ended; the message has the last lines of the
                output.
        """
        deadline_s = time.monotonic() + bound_s
        while time.monotonic() < deadline_s:
            if found := look():
                return found
            if while_it_runs and self.exit_code() is not None:
                raise WrongReaction(f"the launcher ended while waiting for {what}\n{self.describe()}")
            time.sleep(_TICK_S)
        raise WrongReaction(f"not within {bound_s:g} s: {what}\n{self.describe()}")

    def describe(self) -> str:
        """Describe the state of the run for an error."""
        left = "\n".join(
            f"  {seen.pid} {seen.state} {' '.join(seen.argv)[:150]}" for seen in self.processes()
        )
        last = "\n".join(self.output().splitlines()[-_LAST_LINES:])
        saved = [step for step, _ in self.committed()]
        return (
            f"step {self.step()}, checkpoints {saved}, exit code {self.exit_code()}\n"
            f"processes:\n{left}\nterminal ({self.terminal}):\n{last}"
        )

    def split_disks(self) -> None:
        """Give the checkpoints a disk of their own; the job must have ended."""
        folder = self.run_dir / "checkpoints"
        if self.disk is None or self.checkpoint_disk is not None or not folder.is_dir():
            return
        aside = self.run_dir.parent / "checkpoints-aside"
        folder.rename(aside)
        self.checkpoint_disk = Disk(folder)
        for path in aside.iterdir():
            subprocess.run(["cp", "-a", str(path), str(folder)], check=True)

    def close(self) -> None:
        """Kill the remaining processes and free the disks."""
        for seen in self.processes():
            seen.send(signal.SIGKILL)
        if self.launcher is not None:
            self.launcher.wait()
        for disk in (self.checkpoint_disk, self.disk):
            if disk is not None:
                disk.unmount()
