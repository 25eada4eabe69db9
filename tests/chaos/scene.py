"""One run under a launcher, and the scheduler that gives the same command again when it has ended."""

import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from tests.chaos.disks import Disk
from tests.chaos.seen import Seen, agents, loader_workers, processes_of, ranks
from tests.launch.hosts import Host

Found = TypeVar("Found")

BOUND_S = 180.0  # whatever is promised happens within it, on a busy machine too
_TICK_S = 0.02
_LAST_LINES = 60
_TAIL_BYTES = 4096  # of metrics.jsonl: more than a few lines


class PromiseBroken(AssertionError):
    """Something that docs/reliability.md promises did not happen."""


class Scene:
    """A run folder, the command that trains in it, and what can be seen of both from outside.

    Attributes:
        hosts: where the job's processes are, if not on this machine.
        full_spells: while the logs' disk was full, lines may lack: from which step on, and up to which.
        damaged: checkpoints that were spoilt, as `committed` had them.
        worlds: the numbers of processes that the run has had.
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
        self.full_spells: list[tuple[int, int]] = []
        self.damaged: set[tuple[int, int]] = set()
        self.worlds: set[int] = set()
        self._repo = repo
        self.terminal = run_dir.parent / "terminal.log"
        self.launcher: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Give the command, as the user or a scheduler would."""
        if (
            signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        ):  # as a shell's `&` has it, and children inherit it
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

    def processes(self) -> list[Seen]:
        return processes_of(self.run_dir)

    def ranks(self) -> list[Seen]:
        return ranks(self.processes())

    def agents(self) -> list[Seen]:
        return agents(self.processes())

    def workers(self) -> list[Seen]:
        return loader_workers(self.processes())

    def exit_code(self) -> int | None:
        """The launcher's, once it has ended."""
        return None if self.launcher is None else self.launcher.poll()

    def has_ended(self) -> bool:
        """Neither the launcher nor anybody whom it started is there."""
        return self.exit_code() is not None and not self.processes()

    def step(self) -> int:
        """The last step that is known from outside: the last line of metrics, or the newest checkpoint."""
        return max(self.metrics_step(), self.newest_sound())

    def metrics_step(self) -> int:
        """The same from the metrics alone: it falls back when a run goes on from a checkpoint."""
        path = self.run_dir / "metrics.jsonl"
        tail = path.read_bytes()[-_TAIL_BYTES:].decode() if path.exists() else ""
        steps = re.findall(r'^{"step": (\d+),.*}\n', tail, re.M)
        return int(steps[-1]) + 1 if steps else 0

    def committed(self) -> list[tuple[int, int]]:
        """The checkpoints that bear their final names, oldest first: step, and when it was written."""
        found = []
        for path in (self.run_dir / "checkpoints").glob("step-*[0-9]"):
            with contextlib.suppress(FileNotFoundError):  # an old one, dropped just now
                found.append((int(path.name.removeprefix("step-")), path.stat().st_mtime_ns))
        return sorted(found)

    def newest_sound(self) -> int:
        """The step of the newest checkpoint that nobody has spoilt; 0 for none."""
        return max([0, *(step for step, written in self.committed() if (step, written) not in self.damaged)])

    def checkpoint(self, step: int) -> Path:
        return self.run_dir / "checkpoints" / f"step-{step:08d}"

    def said(self) -> str:
        """What the launcher has printed, of all commands."""
        return self.terminal.read_text(errors="replace") if self.terminal.exists() else ""

    def resumed_at(self, said_before: int) -> int | None:
        """From which step the run last went on, as the first process said after that many letters."""
        found = re.findall(r"continuing at step (\d+)", self.said()[said_before:])
        return int(found[-1]) if found else None

    def wait_for(
        self, what: str, look: Callable[[], Found], *, bound_s: float = BOUND_S, while_it_runs: bool = False
    ) -> Found:
        """Look until there is something to see.

        Args:
            while_it_runs: the launcher must not end meanwhile.

        Raises:
            PromiseBroken: there was nothing within the bound, or the launcher ended meanwhile; the message
                has the last lines of the terminal.
        """
        deadline_s = time.monotonic() + bound_s
        while time.monotonic() < deadline_s:
            if found := look():
                return found
            if while_it_runs and self.exit_code() is not None:
                raise PromiseBroken(f"the launcher has ended; awaited was: {what}\n{self.picture()}")
            time.sleep(_TICK_S)
        raise PromiseBroken(f"not within {bound_s:g} s: {what}\n{self.picture()}")

    def picture(self) -> str:
        """What one needs to see when a promise was broken."""
        left = "\n".join(
            f"  {seen.pid} {seen.state} {' '.join(seen.argv)[:150]}" for seen in self.processes()
        )
        last = "\n".join(self.said().splitlines()[-_LAST_LINES:])
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
