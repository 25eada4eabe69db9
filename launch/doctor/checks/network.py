"""Can the nodes reach one another, by which names and interfaces?"""

import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kinemae.launch.doctor.checks.findings import Finding, counted, error, named, ok, or_ok, warning

CHECK = "network"
INTERFACE_VARIABLES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
_MENDS = {
    "unresolved": "name the hosts by addresses or names that every node can resolve (DNS or /etc/hosts), or "
    "set `master_addr` in the cluster file to an address of the first host that all can reach",
    "no answer": "open all TCP ports between the nodes: a firewall or security group drops them, "
    "or the link is down",
    "refused": "open all TCP ports between the nodes: a firewall refuses them, or the name "
    "means another machine there",
    "another service": "choose another `master_port`: another program answers there",
}


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One connection that one node tried to make to another.

    Attributes:
        is_master: to the port where all ranks meet, not to one of those that the system hands out.
        result: what `kinemae.launch.doctor.probe.network.connect` said of it.
    """

    source: str
    target: str
    host: str
    port: int
    is_master: bool
    result: Mapping[str, Any]


def check_master_port(master: str, port: int, failed: str | None) -> list[Finding]:
    """The port where ranks meet must be free on the first node."""
    if failed is None:
        return [ok("port", f"port {port} is free on {master}")]
    return [
        error(
            "port",
            f"port {port} cannot be had on {master}: {failed}",
            f"see who holds it there (ss -ltnp 'sport = :{port}'), end that, or set "
            "`master_port` in the cluster file",
            [master],
        )
    ]


def check_connections(attempts: Sequence[Attempt]) -> list[Finding]:
    """Name every connection that failed, those with one reason and one target together."""
    failed: dict[tuple[str, str, bool, str], list[Attempt]] = {}
    for attempt in attempts:
        reason = attempt.result.get("failed")
        if reason:
            failed.setdefault((attempt.target, attempt.host, attempt.is_master, reason), []).append(attempt)
    findings = []
    for (target, host, is_master, reason), group in failed.items():
        sources = [attempt.source for attempt in group]
        what = f"port {group[0].port}, where ranks meet" if is_master else "a port that the system chose"
        findings.append(
            error(
                CHECK,
                f"{named(sources)} cannot connect to {target} as {host}, {what}: {reason}",
                _MENDS.get(reason, f"mend the route between {sources[0]} and {target} (ip route, ping)"),
                [*sources, target],
            )
        )
    slowest = max((attempt.result.get("ms", 0.0) for attempt in attempts), default=0.0)
    told = f"{counted(len(attempts), 'connection')} between nodes, the slowest made in {slowest:.1f} ms"
    return or_ok(findings, CHECK, told)


def address_for_peers(
    name: str, network: Mapping[str, Any], attempts: Sequence[Attempt], environment: Mapping[str, str]
) -> str | None:
    """The address under which a node's ranks listen to the others; None where it is not known.

    Args:
        attempts: those to the first node; they show which interface leads there.
        environment: of that node; an interface that it names comes first.
    """
    for variable in INTERFACE_VARIABLES:
        for interface in network["interfaces"]:
            if variable in environment and interface["name"] in environment[variable].split(","):
                return str(interface["addresses"][0])
    used = _used_interface(name, network, attempts)
    if used is None:
        return None
    seen = [_plain(str(attempt.result.get("from"))) for attempt in attempts if attempt.source == name]
    return next((address for address in seen if address in used["addresses"]), str(used["addresses"][0]))


def check_interfaces(
    networks: Mapping[str, Mapping[str, Any]],
    attempts: Sequence[Attempt],
    environments: Mapping[str, Mapping[str, str]],
    has_gpus: bool,
) -> list[Finding]:
    """Will Gloo and NCCL take the interface that leads to the other nodes?

    Args:
        networks: each node's answer of `kinemae.launch.doctor.probe.network`.
        attempts: those that succeeded tell which interface leads to the others.
        environments: the variables of each node that matter.
    """
    if len(networks) < 2:
        return []
    findings = []
    used = {name: _used_interface(name, network, attempts) for name, network in networks.items()}
    for name, network in networks.items():
        leads = used[name]
        if leads is None:
            continue  # nothing connects: that is said already
        findings += _chosen(name, network, leads, environments[name])
        if has_gpus or "GLOO_SOCKET_IFNAME" in environments[name]:
            continue
        findings += _gloo_address(name, network, leads)
    known = sorted({leads["name"] for leads in used.values() if leads})
    if not known:
        return findings  # findings already report that no connection works
    return or_ok(findings, "route", f"nodes reach one another through {', '.join(known)}")


def _used_interface(
    name: str, network: Mapping[str, Any], attempts: Sequence[Attempt]
) -> dict[str, Any] | None:
    own = {attempt.result.get("from") for attempt in attempts if attempt.source == name}
    own |= {attempt.result.get("address") for attempt in attempts if attempt.target == name}
    addresses = {_plain(address) for address in own if address}
    for interface in network["interfaces"]:
        if addresses & set(interface["addresses"]):
            return dict(interface)
    return None


def _chosen(
    name: str, network: Mapping[str, Any], leads: Mapping[str, Any], environment: Mapping[str, str]
) -> list[Finding]:
    findings = []
    there = [interface["name"] for interface in network["interfaces"]]
    for variable in INTERFACE_VARIABLES:
        wanted = environment.get(variable, "").lstrip("=^").split(",")
        unknown = [prefix for prefix in wanted if prefix and not any(own.startswith(prefix) for own in there)]
        if unknown and not environment[variable].startswith("^"):
            findings.append(
                error(
                    "route",
                    f"{variable} names {', '.join(unknown)}, and {name} has only {', '.join(there)}",
                    f"set {variable}: {leads['name']} under `environment` in the cluster file",
                    [name],
                )
            )
    outward = [own for own in network["interfaces"] if not _is_loopback(own)]
    if len(outward) > 1 and not any(variable in environment for variable in INTERFACE_VARIABLES):
        others = ", ".join(own["name"] for own in outward if own["name"] != leads["name"])
        findings.append(
            warning(
                "route",
                f"{name} reaches the others through {leads['name']} and also has {others}; "
                "Gloo and NCCL may choose another one",
                f"set GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME to {leads['name']} under "
                "`environment` in the "
                "cluster file",
                [name],
            )
        )
    return findings


def _gloo_address(name: str, network: Mapping[str, Any], leads: Mapping[str, Any]) -> list[Finding]:
    """Without a named interface Gloo offers the address of the own hostname; can the others use it?"""
    offered = network["own_address"]
    if offered in leads["addresses"]:
        return []
    means = f"means {offered}" if offered else "cannot be resolved"
    return [
        error(
            "route",
            f"the hostname of {name}, {network['hostname']}, {means} there, where the others "
            "cannot reach it; "
            "Gloo offers them just that",
            f"set GLOO_SOCKET_IFNAME: {leads['name']} under `environment` in the cluster "
            "file, or mend /etc/hosts",
            [name],
        )
    ]


def _is_loopback(interface: Mapping[str, Any]) -> bool:
    return all(ipaddress.ip_address(address).is_loopback for address in interface["addresses"])


def _plain(address: str) -> str:
    """Without the prefix that IPv4 carries on a socket of both families."""
    return address.removeprefix("::ffff:")


def link_gbit(networks: Mapping[str, Mapping[str, Any]], attempts: Sequence[Attempt]) -> float | None:
    """The slowest link's speed between the nodes, as the drivers tell it; None where one does not."""
    speeds = []
    for name, network in networks.items():
        leads = _used_interface(name, network, attempts)
        if leads is None or leads["gbit"] is None:
            return None
        speeds.append(float(leads["gbit"]))
    return min(speeds, default=None)
