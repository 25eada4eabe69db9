"""The part of the doctor's round in which the nodes meet: listen, connect, and the process group itself."""

import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kinemae.launch.doctor.checks.findings import Finding, warning
from kinemae.launch.doctor.checks.group import check_group
from kinemae.launch.doctor.checks.network import (
    Attempt,
    address_for_peers,
    check_connections,
    check_interfaces,
    check_master_port,
    link_gbit,
)
from kinemae.launch.doctor.checks.sessions import Round

_MESH = 12  # up to so many nodes each connects to each; beyond, to its neighbours
_CONNECT_S, _GROUP_S = 5.0, 40.0

Networks = Mapping[str, Mapping[str, Any]]
Environments = Mapping[str, Mapping[str, str]]


@dataclass(frozen=True, kw_only=True)
class Meeting:
    """Where the ranks are to meet.

    Attributes:
        first: the node that listens.
        host: how the others know it.
        port: where.
        any_ports: of every node that listens, a port as the ranks open among themselves.
        token: what the listeners say, with their node's number behind it.
    """

    first: int
    host: str
    port: int
    any_ports: Mapping[int, int]
    token: str


def meet(at: Round, networks: Networks, environments: Environments, *, is_cuda: bool) -> Iterator[Finding]:
    """Try the way that the ranks of a job take to one another, in its order, and then with real ranks."""
    present = at.nodes.present()
    token, first = secrets.token_hex(16), present[0]
    asked = {
        node: {"port": at.target.master_port if node == first else 0, "token": f"{token}-{node}"}
        for node in present
    }
    listening = at.nodes.ask("listen", asked, 10)
    if first not in listening:
        return
    meeting = Meeting(
        first=first,
        host=_host(at, first),
        port=at.target.master_port or listening[first]["any_port"],
        any_ports={node: answer["any_port"] for node, answer in listening.items()},
        token=token,
    )
    failed = listening[first]["failed"]
    yield from check_master_port(at.name(first), meeting.port, failed)
    attempts = [] if failed else _connect(at, meeting, networks, environments)
    if attempts:
        yield from check_connections(attempts)
        yield from check_interfaces(networks, attempts, environments, is_cuda)
    if failed or any("failed" in attempt.result for attempt in attempts):
        text = "no process group was tried, since the nodes cannot reach one another"
        yield warning("group", text, "mend what is said above, then ask the doctor again")
        return
    yield from _group(at, meeting, is_cuda, at.target.link_gbit or link_gbit(networks, attempts))


def _host(at: Round, first: int) -> str:
    return at.target.environment.get("MASTER_ADDR") or at.target.master(at.name(first))


def _connect(at: Round, meeting: Meeting, networks: Networks, environments: Environments) -> list[Attempt]:
    """First everybody to the first node by its name, then everybody to everybody by their addresses."""
    nodes = list(meeting.any_ports)
    if len(nodes) < 2:
        return []
    to_first = {node: [(meeting.first, meeting.host, meeting.port)] for node in nodes}
    attempts = _tried(at, meeting, to_first, is_master=True)
    addresses = {}
    for node in nodes:
        name = at.name(node)
        address = address_for_peers(name, networks[name], attempts, environments[name])
        if address is not None:
            addresses[node] = address
    mesh = {}
    for place, node in enumerate(nodes):
        near = nodes if len(nodes) <= _MESH else [nodes[place - 1], nodes[(place + 1) % len(nodes)]]
        others = [other for other in near if other != node and other in addresses]
        mesh[node] = [(other, addresses[other], meeting.any_ports[other]) for other in others]
    return [*attempts, *_tried(at, meeting, mesh, is_master=False)]


def _tried(
    at: Round, meeting: Meeting, plan: Mapping[int, Sequence[tuple[int, str, int]]], *, is_master: bool
) -> list[Attempt]:
    """Let each node connect to its (node, host, port) triples."""
    each = {
        node: {
            "to": [
                {"host": host, "port": port, "token": f"{meeting.token}-{other}"} for other, host, port in to
            ],
            "limit_s": _CONNECT_S,
        }
        for node, to in plan.items()
    }
    answers = at.nodes.ask("connect", each, 3 * _CONNECT_S)
    at.keep("to the first" if is_master else "to the others", answers)
    return [
        Attempt(
            source=at.name(node),
            target=at.name(other),
            host=host,
            port=port,
            is_master=is_master,
            result=result,
        )
        for node, results in answers.items()
        for (other, host, port), result in zip(plan[node], results, strict=True)
    ]


def _group(at: Round, meeting: Meeting, is_cuda: bool, gbit: float | None) -> Iterator[Finding]:
    present = at.nodes.present()
    each, first_rank = {}, 0
    for node in present:
        each[node] = {
            "processes": at.target.processes[node],
            "first_rank": first_rank,
            "world": sum(at.target.processes[other] for other in present),
            "meet": [meeting.host, meeting.port],
            "device": "cuda" if is_cuda else "cpu",
            "limit_s": _GROUP_S,
        }
        first_rank += at.target.processes[node]
    ranks = at.keep("group", at.nodes.ask("group", each, _GROUP_S + 10))
    if ranks:
        yield from check_group(ranks, "nccl" if is_cuda else "gloo", gbit)
