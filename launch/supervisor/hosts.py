"""Hosts of a job: query their state, and find out whether they can connect to one another."""

import ipaddress
import json
import socket
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_QUERY_S = 30.0
_INTERFACE = "GLOO_SOCKET_IFNAME"
_SET_INTERFACE = (
    f"set environment.{_INTERFACE} and environment.NCCL_SOCKET_IFNAME to the interface that leads to the "
    "other hosts (ip -brief address; `launch doctor ssh` names it)"
)


@dataclass(frozen=True, kw_only=True)
class HostStatus:
    """Reply of `agent.py --query` on one host.

    Attributes:
        port: a free port of the host.
        error: why the host cannot take part; None if it can.
        machine: equal for hosts that share one machine and network.
        resolve_error: error of resolving the rendezvous host there, if any.
        own_address: the first address of its hostname that it can bind, if any.
        has_interface: whether its environment sets Gloo's interface.
    """

    port: int = 0
    error: str | None = None
    machine: str = ""
    resolve_error: str | None = None
    hostname: str = ""
    own_address: str | None = None
    has_interface: bool = False


def free_port() -> int:
    """A free port of this host."""
    with socket.socket() as listener:
        listener.bind(("", 0))
        return int(listener.getsockname()[1])


def query_hosts(commands: Mapping[str, Sequence[str]]) -> dict[str, HostStatus]:
    """Run the query of each host, all at once."""
    queries = {
        host: subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="backslashreplace",
            start_new_session=True,
        )
        for host, command in commands.items()
    }
    return {host: _status(process) for host, process in queries.items()}


def _status(process: subprocess.Popen[str]) -> HostStatus:
    try:
        output, errors = process.communicate(timeout=_QUERY_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return HostStatus(error=f"no reply within {_QUERY_S:g} s")
    if process.returncode == 0:
        try:
            return HostStatus(**json.loads(output.splitlines()[-1]))
        except (ValueError, LookupError, TypeError):
            return HostStatus(error=f"unexpected output {output!r}")
    lines = [line for line in errors.splitlines() if line.strip()]
    return HostStatus(error=lines[-1] if lines else f"exit code {process.returncode}")


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
        if _INTERFACE in environment or status.has_interface:
            continue
        if status.own_address is None or ipaddress.ip_address(status.own_address).is_loopback:
            problem = f"resolves to {status.own_address}" if status.own_address else "cannot be resolved"
            return (
                f"{host}: its hostname {status.hostname!r} {problem} there; Gloo announces that address, "
                f"which other hosts cannot reach; fix: {_SET_INTERFACE}, or correct /etc/hosts on {host}"
            )
    return None
