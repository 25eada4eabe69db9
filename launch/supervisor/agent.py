"""`python -P launch/supervisor/agent.py JOB.json ...`: run and supervise a job's processes on one host.

The agent writes the output of its processes to RUN/logs, ends all processes when one fails, and forwards
stops. It reads single-byte commands (`COMMANDS`) of the launcher from stdin and sends events on stderr
(`rank.py`). The output of rank 0 goes to stdout. Uses the standard library, `exit_codes.py` and
`error_file.py` only.
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
from typing import Any

if __name__ == "__main__":  # run as a file, with -P, from the frozen code
    sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from kinemae.data_tools.exit_codes import STOPPED
from kinemae.launch.supervisor.rank import Rank, catch_signals, emit, first_failure, write_out

HEARTBEAT, END, KILL = b".", b"E", b"K"
COMMANDS = {b"T": signal.SIGTERM, b"I": signal.SIGINT, b"U": signal.SIGUSR1}
_RESTARTS = 16  # ports of the rendezvous: a process of a new start does not join the store of an old one
_POLL_S = 0.5
_DRAIN_S = 2.0


class Agent:
    """All processes of a job on this host."""

    def __init__(self, arguments: argparse.Namespace, job: dict[str, Any]):
        self._arguments, self._job = arguments, job
        self._ranks: list[Rank] = []
        self._signals: list[int] = []
        self._deadline: float | None = None
        self._last_heartbeat = time.monotonic()
        self._is_supervised = arguments.supervised
        self._open: dict[int, Rank] = {}
        self._failures: list[dict[str, Any]] = []
        self._stop_code: int | None = None

    def run(self) -> int:
        """Start all processes and wait for their end; return the code of the first failure or stop, or 0."""
        wakeup = catch_signals(self._signals)
        for local_rank in range(self._arguments.processes):
            self._ranks.append(self._start(local_rank))
        self._open = {rank.stdout: rank for rank in self._ranks}
        emit("started", pid=os.getpid(), ranks={rank.rank: rank.process.pid for rank in self._ranks})
        while any(rank.code is None for rank in self._ranks):
            self._read_inputs(wakeup, _POLL_S)
            self._collect_ended()
            while self._signals:
                self._stop(self._signals.pop(0), self._arguments.stop_s)
            self._check_deadlines()
        for rank in self._ranks:
            rank.send(signal.SIGKILL)  # loader workers that outlived it
        until = time.monotonic() + _DRAIN_S
        while self._open and time.monotonic() < until:
            self._read_inputs(wakeup, 0.1)
        code = first_failure(self._failures)["code"] if self._failures else self._stop_code or 0
        emit("ended", code=code)
        return code

    def _start(self, local_rank: int) -> Rank:
        given, job = self._arguments, self._job
        rank = given.first_rank + local_rank
        address, _, port = given.master.rpartition(":")
        environment = {
            **os.environ,
            "RANK": str(rank),
            "WORLD_SIZE": str(given.world_size),
            "LOCAL_RANK": str(local_rank),
            "LOCAL_WORLD_SIZE": str(given.processes),
            "MASTER_ADDR": address,
            "MASTER_PORT": str(int(port) + given.restart % _RESTARTS),
            "KINEMAE_PARENT": str(os.getpid()),
        }
        command = [job["python"], "-P", str(Path(__file__).with_name("task.py")), given.job]
        return Rank(rank, command, environment, Path(job["run_dir"]))

    def _read_inputs(self, wakeup: int, timeout_s: float) -> None:
        sources = [wakeup, *self._open, *([0] if self._is_supervised else [])]
        for source in select.select(sources, [], [], timeout_s)[0]:
            if source == wakeup:
                os.read(wakeup, 4096)
            elif source == 0:
                self._on_commands(os.read(0, 4096))
            else:
                self._forward_output(self._open[source])

    def _forward_output(self, rank: Rank) -> None:
        output = rank.read()
        if not output:
            del self._open[rank.stdout]
        elif rank.rank == 0:
            write_out(1, output)

    def _on_commands(self, commands: bytes) -> None:
        """Execute the launcher's commands; an empty read means that it has ended."""
        self._last_heartbeat = time.monotonic()
        if not commands:
            self._is_supervised = False
            emit("note", text="the launcher has died: stopping")
            self._stop(signal.SIGTERM, self._arguments.stop_s)
        for command in (commands[place : place + 1] for place in range(len(commands))):
            if command in COMMANDS:
                self._signals.append(COMMANDS[command])
            elif command == END:
                self._stop(signal.SIGTERM, self._arguments.grace_s)
            elif command == KILL:
                self._stop(signal.SIGKILL, 0)

    def _collect_ended(self) -> None:
        for rank in [rank for rank in self._ranks if rank.poll()]:
            while rank.stdout in self._open and select.select([rank.stdout], [], [], 0)[0]:
                self._forward_output(rank)
            if rank.code in STOPPED or rank.is_killed:
                self._on_stopped(rank.code or 0)
            elif rank.code:
                self._on_failure(rank)

    def _on_stopped(self, code: int) -> None:
        """Keep the code of a stop, after which all ranks end by themselves."""
        if self._stop_code is None and not self._failures:
            self._stop_code = code
        if self._deadline is None:
            self._deadline = time.monotonic() + self._arguments.stop_s

    def _on_failure(self, rank: Rank) -> None:
        """Report a failure and end the other ranks; later failures may hold the cause of the first.

        After the first stopped rank, the others may only have lost their connection to it.
        """
        if self._stop_code in STOPPED:
            return
        self._failures.append(rank.failure())
        emit("failed", **self._failures[-1])
        if self._deadline is None:
            self._stop(signal.SIGTERM, self._arguments.grace_s)

    def _stop(self, number: int, wait_s: float) -> None:
        """Send a signal to all ranks, and SIGKILL after `wait_s`."""
        for rank in self._ranks:
            rank.send(number)
        deadline = time.monotonic() + wait_s
        self._deadline = min(deadline, self._deadline or deadline)

    def _check_deadlines(self) -> None:
        now = time.monotonic()
        if self._is_supervised and now - self._last_heartbeat > self._arguments.heartbeat_timeout_s:
            self._is_supervised = False
            limit_s = self._arguments.heartbeat_timeout_s
            emit("note", text=f"no heartbeat of the launcher for {limit_s:g} s: ending")
            self._stop(signal.SIGTERM, self._arguments.grace_s)
        if self._deadline is not None and now > self._deadline:
            for rank in self._ranks:
                if rank.code is None:
                    emit("note", text=f"rank {rank.rank} did not end in time: SIGKILL")
                    rank.send(signal.SIGKILL)
            self._deadline = now + _DRAIN_S


def print_status(master: str) -> None:
    """Print the fields of `HostStatus` as JSON: the host is reachable and has the code."""
    with socket.socket() as listener:
        listener.bind(("", 0))
        port = listener.getsockname()[1]
    namespace = os.stat("/proc/self/ns/net").st_ino
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    resolve_error = None
    try:
        socket.getaddrinfo(master, 0, type=socket.SOCK_STREAM)
    except OSError as error:
        resolve_error = error.strerror or str(error)
    status = {
        "port": port,
        "machine": f"{boot} {namespace}",
        "resolve_error": resolve_error,
        "hostname": socket.gethostname(),
        "own_address": own_address(),
        "has_interface": "GLOO_SOCKET_IFNAME" in os.environ,
    }
    sys.stdout.write(json.dumps(status))


def own_address() -> str | None:
    """The first bindable address of the own hostname; Gloo announces it to the other processes."""
    with suppress(OSError):
        for family, kind, protocol, _, address in socket.getaddrinfo(
            socket.gethostname(), 0, type=socket.SOCK_STREAM
        ):
            with socket.socket(family, kind, protocol) as handle, suppress(OSError):
                handle.bind(address)
                return str(address[0])
    return None


def main(argv: list[str]) -> int:
    """Parse the arguments, read the job and supervise its processes."""
    if argv[:1] == ["--query"]:
        print_status(argv[1])
        return 0
    parser = argparse.ArgumentParser(prog="agent.py", description="Supervise a job's processes on one host.")
    parser.add_argument("job", help="the job.json that `launch` wrote")
    parser.add_argument("--node", type=int, default=0, help="index of this node")
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--processes", type=int, required=True, help="number of processes on this node")
    parser.add_argument("--first-rank", type=int, help="default: node x processes")
    parser.add_argument("--world-size", type=int, help="default: nodes x processes")
    parser.add_argument("--master", required=True, metavar="HOST:PORT", help="rendezvous of the processes")
    parser.add_argument("--restart", type=int, default=0, help="earlier starts, added to the port")
    parser.add_argument("--job-id", help="write it to RUN/launch/launch.json, as in a pod without a launcher")
    parser.add_argument("--grace-s", type=float, default=20.0, help="from SIGTERM to SIGKILL after a failure")
    parser.add_argument("--stop-s", type=float, default=120.0, help="the same after a stop, to save")
    parser.add_argument("--heartbeat-timeout-s", type=float, default=30.0, help="end without the launcher")
    parser.add_argument("--host", help="name of this host in the cluster file")
    parser.add_argument(
        "--supervised", action="store_true", help="execute commands of a launcher on stdin; end without it"
    )
    arguments = parser.parse_args(argv)
    if arguments.first_rank is None:
        arguments.first_rank = arguments.node * arguments.processes
    if arguments.world_size is None:
        arguments.world_size = arguments.nodes * arguments.processes
    if arguments.host:
        os.environ["KINEMAE_HOST"] = arguments.host
    if arguments.supervised:  # a suspended terminal must not block the training
        os.set_blocking(1, False)
        os.set_blocking(2, False)
    job = json.loads(Path(arguments.job).read_text(encoding="utf-8"))
    if arguments.job_id and arguments.node == 0:
        # A pod has no launcher, and all packages: this import is not of the standard library alone.
        from kinemae.launch.record import Record

        record = Record(Path(job["run_dir"]), kind="k8s", job_id=arguments.job_id)
        record.update(attempt=arguments.restart + 1)
    return Agent(arguments, job).run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
