"""Check that the nodes reach one another, as the ranks of a job do, and form a real process group."""

import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kinemae.launch.doctor.checks.group import check_group
from kinemae.launch.doctor.checks.network import (
    Connection,
    address_for_peers,
    check_connections,
    check_interfaces,
    check_master_port,
    link_gbit,
)
from kinemae.launch.doctor.results import CheckResult, warning

if TYPE_CHECKING:
    from kinemae.launch.doctor.run_checks import Session

_MESH = 12  # up to this many nodes, each connects to all others; beyond, to its neighbours
_CONNECT_S, _GROUP_S = 5.0, 40.0

Networks = Mapping[str, Mapping[str, Any]]
Environments = Mapping[str, Mapping[str, str]]


@dataclass(frozen=True, kw_only=True)
class Rendezvous:
    """Address and port of the first node, and a second port of each node.

    Attributes:
        token: sent by the listeners, followed by the number of their node.
    """

    first: int
    host: str
    port: int
    any_ports: Mapping[int, int]
    token: str


def check_rendezvous(
    session: "Session", networks: Networks, environments: Environments, *, is_cuda: bool
) -> Iterator[CheckResult]:
    """Listen, connect, and run a process group, in the order of a job's start."""
    present, target = session.probes.present(), session.target
    token, first = secrets.token_hex(16), present[0]
    ports = {node: target.master_port if node == first else 0 for node in present}
    listening = session.probes.ask(
        "listen", {node: {"port": port, "token": f"{token}-{node}"} for node, port in ports.items()}, 10
    )
    if first not in listening:
        return
    rendezvous = Rendezvous(
        first=first,
        host=target.environment.get("MASTER_ADDR") or target.master(session.name(first)),
        port=target.master_port or listening[first]["any_port"],
        any_ports={node: reply["any_port"] for node, reply in listening.items()},
        token=token,
    )
    failed = listening[first]["failed"]
    yield from check_master_port(session.name(first), rendezvous.port, failed)
    connections = [] if failed else _connect_all(session, rendezvous, networks, environments)
    if connections:
        yield from check_connections(connections)
        yield from check_interfaces(networks, connections, environments)
    if failed or any("failed" in connection.result for connection in connections):
        text = "no process group was started, because the nodes cannot reach one another"
        yield warning("group", text, "correct the errors above, then run the doctor again")
        return
    speed = target.link_gbit or link_gbit(networks, connections)
    yield from _check_process_group(session, rendezvous, is_cuda, speed)


def _connect_all(
    session: "Session", rendezvous: Rendezvous, networks: Networks, environments: Environments
) -> list[Connection]:
    """Connect all nodes to the first by its name, then all to all by their addresses."""
    nodes = list(rendezvous.any_ports)
    if len(nodes) < 2:
        return []
    to_first = {node: [(rendezvous.first, rendezvous.host, rendezvous.port)] for node in nodes}
    connections = _connect(session, rendezvous, to_first, is_master=True)
    addresses = {}
    for node in nodes:
        name = session.name(node)
        address = address_for_peers(name, networks[name], connections, environments[name])
        if address is not None:
            addresses[node] = address
    mesh = {}
    for place, node in enumerate(nodes):
        near = nodes if len(nodes) <= _MESH else [nodes[place - 1], nodes[(place + 1) % len(nodes)]]
        others = [other for other in near if other != node and other in addresses]
        mesh[node] = [(other, addresses[other], rendezvous.any_ports[other]) for other in others]
    return [*connections, *_connect(session, rendezvous, mesh, is_master=False)]


def _connect(
    session: "Session",
    rendezvous: Rendezvous,
    plan: Mapping[int, Sequence[tuple[int, str, int]]],
    *,
    is_master: bool,
) -> list[Connection]:
    """Connect each node to its (node, host, port) triples."""
    each = {
        node: {
            "to": [
                {"host": host, "port": port, "token": f"{rendezvous.token}-{other}"}
                for other, host, port in triples
            ],
            "limit_s": _CONNECT_S,
        }
        for node, triples in plan.items()
    }
    replies = session.probes.ask("connect", each, 3 * _CONNECT_S)
    return [
        Connection(
            source=session.name(node),
            target=session.name(other),
            host=host,
            port=port,
            is_master=is_master,
            result=result,
        )
        for node, results in replies.items()
        for (other, host, port), result in zip(plan[node], results, strict=True)
    ]


def _check_process_group(
    session: "Session", rendezvous: Rendezvous, is_cuda: bool, gbit: float | None
) -> Iterator[CheckResult]:
    present, processes = session.probes.present(), session.target.processes
    each, first_rank = {}, 0
    for node in present:
        each[node] = {
            "processes": processes[node],
            "first_rank": first_rank,
            "world_size": sum(processes[other] for other in present),
            "master": [rendezvous.host, rendezvous.port],
            "device": "cuda" if is_cuda else "cpu",
            "limit_s": _GROUP_S,
        }
        first_rank += processes[node]
    ranks = session.ask("group", each, _GROUP_S + 10)
    if ranks:
        yield from check_group(ranks, "nccl" if is_cuda else "gloo", gbit)
