"""Check names, ports and interfaces between the nodes."""

import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kinemae.launch.doctor.results import CheckResult, count, error, join_names, ok, or_ok, warning

INTERFACE_VARIABLES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
_FIXES = {
    "unresolved": "use addresses or names that every node can resolve (DNS or /etc/hosts), or set "
    "`master_addr` in the cluster file to an address of the first host that all can reach",
    "no reply": "open all TCP ports between the nodes: a firewall drops packets, or the link is down",
    "refused": "open all TCP ports between the nodes: a firewall refuses, or the name resolves to another "
    "machine there",
    "another service": "set another `master_port`: another program uses this one",
}

Networks = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Connection:
    """An attempted connection between two nodes.

    Attributes:
        is_master: whether the port is the rendezvous port.
        result: reply of `kinemae.launch.doctor.probe.network.connect`.
    """

    source: str
    target: str
    host: str
    port: int
    is_master: bool
    result: Mapping[str, Any]


def check_master_port(master: str, port: int, failed: str | None) -> list[CheckResult]:
    """Check that the rendezvous port is free on the first node."""
    if failed is None:
        return [ok("port", f"port {port} is free on {master}")]
    fix = f"end its user (ss -ltnp 'sport = :{port}'), or set `master_port` in the cluster file"
    return [error("port", f"port {port} is not available on {master}: {failed}", fix, [master])]


def check_connections(connections: Sequence[Connection]) -> list[CheckResult]:
    """Report failed connections, grouped by target and reason."""
    failed: dict[tuple[str, str, bool, str], list[Connection]] = {}
    for connection in connections:
        reason = connection.result.get("failed")
        if reason:
            key = (connection.target, connection.host, connection.is_master, reason)
            failed.setdefault(key, []).append(connection)
    results = []
    for (target, host, is_master, reason), group in failed.items():
        sources = [connection.source for connection in group]
        port = f"rendezvous port {group[0].port}" if is_master else "a free port"
        text = f"{join_names(sources)} cannot connect to {target} as {host}, {port}: {reason}"
        fix = _FIXES.get(reason, f"correct the route between {sources[0]} and {target} (ip route, ping)")
        results.append(error("network", text, fix, [*sources, target]))
    slowest = max((connection.result.get("ms", 0.0) for connection in connections), default=0.0)
    text = f"{count(len(connections), 'connection')} between nodes, the slowest in {slowest:.1f} ms"
    return or_ok(results, "network", text)


def address_for_peers(
    name: str, network: Mapping[str, Any], connections: Sequence[Connection], environment: Mapping[str, str]
) -> str | None:
    """The address at which other nodes reach a node, if it is known.

    Args:
        connections: those to the first node; they show which interface is used.
        environment: of the node; an interface that it names takes precedence.
    """
    for variable in INTERFACE_VARIABLES:
        for interface in network["interfaces"]:
            if variable in environment and interface["name"] in environment[variable].split(","):
                return str(interface["addresses"][0])
    used = _used_interface(name, network, connections)
    if used is None:
        return None
    own = [_plain(str(item.result.get("from"))) for item in connections if item.source == name]
    return next((address for address in own if address in used["addresses"]), str(used["addresses"][0]))


def check_interfaces(
    networks: Networks, connections: Sequence[Connection], environments: Mapping[str, Mapping[str, str]]
) -> list[CheckResult]:
    """Check that Gloo and NCCL use the interface that leads to the other nodes.

    Args:
        networks: the replies of `kinemae.launch.doctor.probe.network`.
        connections: those that succeeded show the interface.
        environments: values of `INTERFACE_VARIABLES` by node.
    """
    if len(networks) < 2:
        return []
    results = []
    used = {name: _used_interface(name, network, connections) for name, network in networks.items()}
    for name, network in networks.items():
        interface = used[name]
        if interface is not None:  # otherwise nothing connects, which is reported
            results += _check_variables(name, network, interface["name"], environments[name])
            if "GLOO_SOCKET_IFNAME" not in environments[name]:
                results += _check_gloo_address(name, network, interface)
    names = sorted({interface["name"] for interface in used.values() if interface})
    return (
        or_ok(results, "route", f"nodes reach one another through {', '.join(names)}") if names else results
    )


def _used_interface(
    name: str, network: Mapping[str, Any], connections: Sequence[Connection]
) -> dict[str, Any] | None:
    own = {item.result.get("from") for item in connections if item.source == name}
    own |= {item.result.get("address") for item in connections if item.target == name}
    addresses = {_plain(address) for address in own if address}
    for interface in network["interfaces"]:
        if addresses & set(interface["addresses"]):
            return dict(interface)
    return None


def _check_variables(
    name: str, network: Mapping[str, Any], used: str, environment: Mapping[str, str]
) -> list[CheckResult]:
    results = []
    present = [interface["name"] for interface in network["interfaces"]]
    for variable in INTERFACE_VARIABLES:
        value = environment.get(variable, "")
        prefixes = [] if value.startswith("^") else value.lstrip("=").split(",")
        unknown = [prefix for prefix in prefixes if not any(own.startswith(prefix) for own in present)]
        if unknown:
            text = f"{variable} names {', '.join(unknown)}, but {name} has only {', '.join(present)}"
            fix = f"set environment.{variable}={used} in the cluster file"
            results.append(error("route", text, fix, [name]))
    outward = [own for own in network["interfaces"] if not _is_loopback(own)]
    if len(outward) > 1 and not any(variable in environment for variable in INTERFACE_VARIABLES):
        others = ", ".join(own["name"] for own in outward if own["name"] != used)
        text = f"{name} reaches the others through {used} and also has {others}; Gloo and NCCL may use it"
        fix = f"set environment.GLOO_SOCKET_IFNAME and environment.NCCL_SOCKET_IFNAME to {used}"
        results.append(warning("route", text, fix, [name]))
    return results


def _check_gloo_address(
    name: str, network: Mapping[str, Any], interface: Mapping[str, Any]
) -> list[CheckResult]:
    """Without a configured interface, Gloo announces the address of the own hostname."""
    address = network["own_address"]
    if address in interface["addresses"]:
        return []
    problem = f"resolves to {address}" if address else "cannot be resolved"
    text = (
        f"the hostname {network['hostname']} of {name} {problem} there; Gloo announces that address, which "
        "the other nodes cannot reach"
    )
    fix = f"set environment.GLOO_SOCKET_IFNAME={interface['name']} in the cluster file, or correct /etc/hosts"
    return [error("route", text, fix, [name])]


def _is_loopback(interface: Mapping[str, Any]) -> bool:
    return all(ipaddress.ip_address(address).is_loopback for address in interface["addresses"])


def _plain(address: str) -> str:
    """Remove the prefix of an IPv4 address on a socket of both families."""
    return address.removeprefix("::ffff:")


def link_gbit(networks: Networks, connections: Sequence[Connection]) -> float | None:
    """The speed of the slowest link by the drivers; None if a driver does not report it."""
    speeds = []
    for name, network in networks.items():
        interface = _used_interface(name, network, connections)
        if interface is None or interface["gbit"] is None:
            return None
        speeds.append(float(interface["gbit"]))
    return min(speeds, default=None)
