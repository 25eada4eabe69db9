"""Name resolution between hosts: check that the processes of a job can connect before they start."""

import ipaddress
from collections.abc import Mapping

from kinemae.launch.supervisor.hosts import Answer

_INTERFACE = "GLOO_SOCKET_IFNAME"
_SET_IT = (
    f"set environment.{_INTERFACE} and environment.NCCL_SOCKET_IFNAME to the interface that leads to the "
    "other hosts (ip -brief address; `launch doctor ssh` names it)"
)


def name_fault(answers: Mapping[str, Answer], master: str, environment: Mapping[str, str]) -> str | None:
    """The reason, with its fix, why the processes of several hosts cannot connect; None without a known one.

    Args:
        answers: of the hosts of the job, in order; the rendezvous is on the first.
        master: the name or address of the rendezvous.
        environment: what the cluster file sets for each process.
    """
    if len({answer.machine for answer in answers.values()}) < 2:
        return None
    first = next(iter(answers))
    for host, answer in answers.items():
        if answer.unresolved is not None:
            return (
                f"{host} cannot resolve {master!r}, where the processes meet ({answer.unresolved}); fix: set "
                f"master_addr to an address of {first} that every host can reach, or make the name known on "
                f"{host} (DNS, /etc/hosts); where hosts are named by ssh aliases, also {_SET_IT}"
            )
        if _INTERFACE in environment or answer.has_interface:
            continue
        if answer.own_address is None or ipaddress.ip_address(answer.own_address).is_loopback:
            means = f"means {answer.own_address}" if answer.own_address else "cannot be resolved"
            return (
                f"{host}: its own hostname {answer.hostname!r} {means} there, and Gloo offers that address "
                f"to the other hosts, which cannot reach it; fix: {_SET_IT}, or correct /etc/hosts on {host}"
            )
    return None
