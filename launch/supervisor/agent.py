"""`python -P launch/supervisor/agent.py JOB.json ...`: looks after the processes of a job on one host.

`launch local` and `launch ssh` run it on every host. It keeps what the processes print in RUN/logs, ends all
of them when one fails, and passes stops on. Its head, the launcher, talks to it over stdin in single bytes
(`ORDERS`) and hears of it on stderr (`rank.py`); what rank 0 prints goes to stdout as it is.
"""

import argparse
import json
import os
import select
import signal
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

if __name__ == "__main__":  # run as a file, with -P, from the frozen code
    sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from kinemae.data_tools.exit_codes import STOPPED
from kinemae.launch.supervisor.rank import Rank, put, tell

HEARTBEAT, END, KILL = b".", b"E", b"K"
ORDERS = {b"T": signal.SIGTERM, b"I": signal.SIGINT, b"U": signal.SIGUSR1}
_POLL_S = 0.5
_DRAIN_S = 2.0


class Agent:
    """All processes of a job on this host, until the last has ended."""

    def __init__(self, arguments: argparse.Namespace, job: dict[str, Any]):
        self._arguments, self._job = arguments, job
        self._ranks: list[Rank] = []
        self._received: list[int] = []
        self._deadline: float | None = None
        self._heard = time.monotonic()
        self._is_headed = arguments.headed
        self._open: dict[int, Rank] = {}
        self.first_failure: int | None = None

    def run(self) -> int:
        """Start, look after, clean up; the exit code is that of the first failure."""
        wakeup = self._catch_signals()
        for local_rank in range(self._arguments.processes):
            self._ranks.append(self._start(local_rank))
        self._open = {rank.output: rank for rank in self._ranks}
        tell("started", pid=os.getpid(), ranks={rank.rank: rank.process.pid for rank in self._ranks})
        while any(rank.code is None for rank in self._ranks):
            self._listen(wakeup, _POLL_S)
            self._note_ends()
            self._obey_signals()
            self._mind_time()
        for rank in self._ranks:
            rank.send(signal.SIGKILL)  # loader processes that outlived it
        until = time.monotonic() + _DRAIN_S
        while self._open and time.monotonic() < until:
            self._listen(wakeup, 0.1)
        code = self.first_failure or 0
        tell("ended", code=code)
        return code

    def _start(self, local_rank: int) -> Rank:
        given, job = self._arguments, self._job
        rank = given.first_rank + local_rank
        address, _, port = given.master.rpartition(":")
        environment = {
            **os.environ,
            "RANK": str(rank),
            "WORLD_SIZE": str(given.world),
            "LOCAL_RANK": str(local_rank),
            "LOCAL_WORLD_SIZE": str(given.processes),
            "MASTER_ADDR": address,
            "MASTER_PORT": port,
            "KINEMAE_PARENT": str(os.getpid()),
        }
        command = [job["python"], "-P", str(Path(__file__).with_name("task.py")), given.job]
        return Rank(rank, command, environment, Path(job["run_dir"]) / "logs" / f"rank-{rank:05d}.log")

    def _catch_signals(self) -> int:
        """Note the signals that stop a job, and wake `_listen` for each; the descriptor to listen to."""
        reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, self._note_signal)
        return reader

    def _note_signal(self, number: int, frame: FrameType | None) -> None:
        if number != signal.SIGCHLD:
            self._received.append(signal.SIGTERM if number == signal.SIGHUP else number)

    def _listen(self, wakeup: int, timeout_s: float) -> None:
        sources = [wakeup, *self._open, *([0] if self._is_headed else [])]
        for source in select.select(sources, [], [], timeout_s)[0]:
            if source == wakeup:
                os.read(wakeup, 4096)
            elif source == 0:
                self._hear(os.read(0, 4096))
            else:
                self._pass_on(self._open[source])

    def _pass_on(self, rank: Rank) -> None:
        printed = rank.read()
        if not printed:
            del self._open[rank.output]
        elif rank.rank == 0:
            put(1, printed)

    def _hear(self, orders: bytes) -> None:
        """What the head says: it is there, or what to do; nothing at all means that it is gone."""
        self._heard = time.monotonic()
        if not orders:
            self._is_headed = False
            tell("note", text="the launcher is gone: stopping")
            self._stop(signal.SIGTERM, self._arguments.stop_s)
        for order in (orders[place : place + 1] for place in range(len(orders))):
            if order in ORDERS:
                self._received.append(ORDERS[order])
            elif order == END:
                self._stop(signal.SIGTERM, self._arguments.grace_s)
            elif order == KILL:
                self._stop(signal.SIGKILL, 0)

    def _note_ends(self) -> None:
        ended = [rank for rank in self._ranks if rank.poll()]
        # Of several that ended at once, one that just lost its peer says least.
        for rank in sorted(ended, key=lambda rank: rank.code == 1):
            if rank.code and self.first_failure is None:
                self.first_failure = rank.code
                while rank.output in self._open and select.select([rank.output], [], [], 0)[0]:
                    self._pass_on(rank)
                if self._deadline is None:
                    self._report(rank)

    def _report(self, rank: Rank) -> None:
        """The first failure, once; and the end of the others. A stop is agreed on: they end by themselves."""
        if rank.code in STOPPED:
            self._deadline = time.monotonic() + self._arguments.stop_s
            return
        tell("failed", rank=rank.rank, code=rank.code, log=str(rank.log), last_lines=rank.last_lines())
        self._stop(signal.SIGTERM, self._arguments.grace_s)

    def _obey_signals(self) -> None:
        while self._received:
            self._stop(self._received.pop(0), self._arguments.stop_s)

    def _stop(self, number: int, wait_s: float) -> None:
        """A signal to all, and SIGKILL for those that are still there when the time is over."""
        for rank in self._ranks:
            rank.send(number)
        deadline = time.monotonic() + wait_s
        self._deadline = min(deadline, self._deadline or deadline)

    def _mind_time(self) -> None:
        now = time.monotonic()
        if self._is_headed and now - self._heard > self._arguments.silence_s:
            self._is_headed = False
            tell("note", text=f"nothing heard of the launcher for {self._arguments.silence_s:g} s: ending")
            self._stop(signal.SIGTERM, self._arguments.grace_s)
        if self._deadline is not None and now > self._deadline:
            for rank in self._ranks:
                if rank.code is None:
                    tell("note", text=f"rank {rank.rank} did not end in time: SIGKILL")
                    rank.send(signal.SIGKILL)
            self._deadline = now + _DRAIN_S


def answer(master: str) -> int:
    """Report that this host is reachable and has the code, a free port, and the addresses of names here."""
    with socket.socket() as listener:
        listener.bind(("", 0))
        told: dict[str, Any] = {"port": listener.getsockname()[1]}
    namespace = os.stat("/proc/self/ns/net").st_ino
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    unresolved = None
    try:
        socket.getaddrinfo(master, 0, type=socket.SOCK_STREAM)
    except OSError as error:
        unresolved = error.strerror or str(error)
    told |= {"machine": f"{boot} {namespace}", "unresolved": unresolved, "hostname": socket.gethostname()}
    told |= {"own_address": own_address(), "has_interface": "GLOO_SOCKET_IFNAME" in os.environ}
    sys.stdout.write(json.dumps(told))
    return 0


def own_address() -> str | None:
    """The first address of the own hostname that can be bound; Gloo publishes it to the other processes."""
    with suppress(OSError):
        for family, kind, protocol, _, address in socket.getaddrinfo(
            socket.gethostname(), 0, type=socket.SOCK_STREAM
        ):
            with socket.socket(family, kind, protocol) as handle, suppress(OSError):
                handle.bind(address)
                return str(address[0])
    return None


def main(argv: list[str]) -> int:
    """Parse, read the job, look after its processes."""
    if argv[:1] == ["--answer"]:
        return answer(argv[1])
    parser = argparse.ArgumentParser(prog="agent.py", description="Look after a job's processes on a host.")
    parser.add_argument("job", help="the job.json that `launch` wrote")
    parser.add_argument("--node", type=int, default=0, help="which of the nodes this is, from 0")
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--processes", type=int, required=True, help="how many here")
    parser.add_argument("--first-rank", type=int, help="default: node x processes")
    parser.add_argument("--world", type=int, help="default: nodes x processes")
    parser.add_argument("--master", required=True, metavar="HOST:PORT", help="where the processes meet")
    parser.add_argument("--grace-s", type=float, default=20.0, help="from SIGTERM to SIGKILL after a failure")
    parser.add_argument("--stop-s", type=float, default=120.0, help="the same for a stop, which saves first")
    parser.add_argument("--silence-s", type=float, default=30.0, help="the head counts as gone after that")
    parser.add_argument("--host", help="what the cluster file calls this host")
    parser.add_argument("--headed", action="store_true", help="listen to a head on stdin; end without it")
    arguments = parser.parse_args(argv)
    if arguments.first_rank is None:
        arguments.first_rank = arguments.node * arguments.processes
    if arguments.world is None:
        arguments.world = arguments.nodes * arguments.processes
    if arguments.host:
        os.environ["KINEMAE_HOST"] = arguments.host
    if arguments.headed:  # a terminal that was halted must not halt the training
        os.set_blocking(1, False)
        os.set_blocking(2, False)
    return Agent(arguments, json.loads(Path(arguments.job).read_text(encoding="utf-8"))).run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
