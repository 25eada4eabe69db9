"""Hosts of a job: query their state, and find out whether they can connect to one another."""

import hashlib
import ipaddress
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass

from kinemae.launch.doctor.probe import machine, own_address

_QUERY_S = 30.0
_INTERFACE = "GLOO_SOCKET_IFNAME"
_SET_INTERFACE = (
    f"set environment.{_INTERFACE} and environment.NCCL_SOCKET_IFNAME to the interface that leads to the "
    "other hosts (ip -brief address)"
)


@dataclass(frozen=True, kw_only=True)
class HostStatus:
    """Reply of `agent.py --query` on one host, see `print_status`.

    Attributes:
        port: a free port of the host.
        error: why the host cannot take part; None if it can.
        resolve_error: error of resolving the rendezvous host there, if any.
        hostname_error: see `hostname_problem`; None if its environment sets Gloo's interface.
    """

    port: int = 0
    error: str | None = None
    machine: str = ""
    resolve_error: str | None = None
    hostname_error: str | None = None
    own_address: str | None = None


def print_status(run_dir: str, host: str, master: str) -> None:
    """Print the status of this host as JSON: it is reachable and has the code."""
    guard = be_the_only_agent(run_dir, host, 0)
    resolve_error = None
    try:
        socket.getaddrinfo(master, 0, type=socket.SOCK_STREAM)
    except OSError as error:
        resolve_error = error.strerror or str(error)
    has_interface, address = _INTERFACE in os.environ, own_address()
    status = HostStatus(
        port=free_port(),
        error=None if guard is not None else "an agent of an earlier start still runs there",
        machine=machine(),
        resolve_error=resolve_error,
        hostname_error=None if has_interface else hostname_problem(socket.gethostname(), address),
        own_address=address,
    )
    sys.stdout.write(json.dumps(asdict(status)))


def be_the_only_agent(run_dir: str, host: str, wait_s: float) -> socket.socket | None:
    """Keep other agents of a run off this host, until the returned socket is closed; None if there is one.

    An abstract socket disappears with its process.
    """
    name = hashlib.sha256(f"{run_dir}\0{host}".encode()).hexdigest()
    handle, until = socket.socket(socket.AF_UNIX), time.monotonic() + wait_s
    while True:
        try:
            handle.bind(f"\0kinemae-agent-{name}")
            return handle
        except OSError:
            if time.monotonic() > until:
                return None
            time.sleep(0.2)


def free_port() -> int:
    """A free port of this host."""
    with socket.socket() as listener:
        listener.bind(("", 0))
        return int(listener.getsockname()[1])


def query_hosts(commands: Mapping[str, Sequence[str]]) -> dict[str, HostStatus]:
    """Run the query of each host, all at once."""
    with ThreadPoolExecutor(len(commands)) as threads:
        return dict(zip(commands, threads.map(_query, commands.values()), strict=True))


def _query(command: Sequence[str]) -> HostStatus:
    try:
        ran = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="backslashreplace",
            start_new_session=True, timeout=_QUERY_S,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return HostStatus(error=f"no reply within {_QUERY_S:g} s")
    if ran.returncode != 0:
        lines = [line for line in ran.stderr.splitlines() if line.strip()]
        return HostStatus(error=lines[-1] if lines else f"exit code {ran.returncode}")
    try:
        return HostStatus(**json.loads(ran.stdout.splitlines()[-1]))
    except (ValueError, LookupError, TypeError):
        return HostStatus(error=f"unexpected output {ran.stdout!r}")


def resolution_error(
    statuses: Mapping[str, HostStatus], master: str, environment: Mapping[str, str]
) -> str | None:
    """Find a reason, with its fix, why processes on these hosts cannot connect.

    Args:
        statuses: of the job's hosts, in order; the rendezvous is on the first.
        master: name or address of the rendezvous.
        environment: variables from the cluster file.
    """
    if len({status.machine for status in statuses.values()}) < 2:
        return None
    first = next(iter(statuses))
    for host, status in statuses.items():
        if status.resolve_error is not None:
            return (
                f"{host} cannot resolve {master!r}, the rendezvous host ({status.resolve_error}); fix: set "
                f"master_addr to an address of {first} that every host can reach, or make the name known on "
                f"{host} (DNS, /etc/hosts); if hosts are given by ssh aliases, also {_SET_INTERFACE}"
            )
        if status.hostname_error is not None and _INTERFACE not in environment:
            return f"{host}: {status.hostname_error}; fix: {_SET_INTERFACE}, or correct /etc/hosts on {host}"
    return None


def hostname_problem(hostname: str, address: str | None) -> str | None:
    """Find a reason why others do not reach a host by its own hostname, whose address Gloo announces."""
    if address is not None and not ipaddress.ip_address(address).is_loopback:
        return None
    found = f"resolves to {address}" if address else "cannot be resolved"
    return f"its hostname {hostname!r} {found}; Gloo announces that address, which other hosts cannot reach"
