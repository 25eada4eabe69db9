"""Interfaces and hostname of a node, and connections between nodes."""

import contextlib
import fcntl
import os
import socket
import struct
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

_GET_ADDRESS = 0x8915  # SIOCGIFADDR of Linux
_TOKEN_BYTES = 64


def network() -> dict[str, Any]:
    """Interfaces with addresses and speed, and the address that Gloo announces to other nodes."""
    interfaces = [_interface(name) for _, name in socket.if_nameindex()]
    return {
        "hostname": socket.gethostname(),
        "own_address": _own_address(),
        "interfaces": [interface for interface in interfaces if interface["addresses"]],
    }


def _interface(name: str) -> dict[str, Any]:
    folder = Path("/sys/class/net") / name
    return {
        "name": name,
        "addresses": [*_ipv4(name), *_ipv6(name)],
        "gbit": _speed_gbit(folder),
        "is_virtual": not (folder / "device").exists(),
    }


def _ipv4(name: str) -> list[str]:
    request = struct.pack("256s", name.encode()[:15])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as handle, contextlib.suppress(OSError):
        return [socket.inet_ntoa(fcntl.ioctl(handle, _GET_ADDRESS, request)[20:24])]
    return []


def _ipv6(name: str) -> list[str]:
    """Global addresses only; other nodes cannot use link-local ones."""
    with contextlib.suppress(OSError):
        rows = [line.split() for line in Path("/proc/net/if_inet6").read_text().splitlines()]
        packed = [bytes.fromhex(row[0]) for row in rows if row[5] == name and row[3] == "00"]
        return [socket.inet_ntop(socket.AF_INET6, address) for address in packed]
    return []


def _speed_gbit(folder: Path) -> float | None:
    """Speed of an Ethernet link or its InfiniBand port, if the driver reports it."""
    for rate in sorted(folder.glob("device/infiniband/*/ports/*/rate")):
        with contextlib.suppress(OSError, ValueError):
            return float(rate.read_text().split()[0])  # as in "200 Gb/sec (4X HDR)"
    with contextlib.suppress(OSError, ValueError):
        megabit = int((folder / "speed").read_text())
        return megabit / 1000 if megabit > 0 else None
    return None


def _own_address() -> str | None:
    """The first bindable address of the own hostname; Gloo uses it unless an interface is set."""
    with contextlib.suppress(OSError):
        for family, kind, protocol, _, address in socket.getaddrinfo(
            socket.gethostname(), 0, type=socket.SOCK_STREAM
        ):
            with socket.socket(family, kind, protocol) as handle, contextlib.suppress(OSError):
                handle.bind(address)
                return str(address[0])
    return None


class Listener:
    """Sends its token to every client until it is deleted."""

    def __init__(self, port: int, token: str):
        family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
        self._socket = socket.create_server(
            ("", port), family=family, dualstack_ipv6=family == socket.AF_INET6, backlog=1024
        )
        self.port = int(self._socket.getsockname()[1])
        self._token = token.encode()
        threading.Thread(target=_serve, args=(self._socket, self._token), daemon=True).start()

    def __del__(self) -> None:
        with contextlib.suppress(OSError, AttributeError):
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes the thread up
            self._socket.close()


def _serve(listening: socket.socket, token: bytes) -> None:
    while True:
        try:
            client, _ = listening.accept()
        except OSError:
            return
        with client, contextlib.suppress(OSError):
            client.sendall(token)


def listen(*, port: int, token: str) -> Any:
    """Listen on `port` and on a free port, until the group test.

    Returns:
        ({"any_port": ..., "failed": error of `port`, or None}, the listeners to keep).
    """
    other = Listener(0, token)
    try:
        master = Listener(port, token) if port else None
    except OSError as error:
        return {"any_port": other.port, "failed": os.strerror(error.errno or 0)}, other
    return {"any_port": other.port, "failed": None}, (other, master)


def connect(*, to: Sequence[dict[str, Any]], limit_s: float) -> list[dict[str, Any]]:
    """Connect to every {"host", "port", "token"} at once.

    Returns:
        For each, `address` and `from` (addresses of both ends) and `ms`; or `failed`: unresolved, refused,
        no reply, another service, or the system's message.
    """
    with ThreadPoolExecutor(max_workers=64) as pool:
        return list(pool.map(lambda target: _connect(limit_s=limit_s, **target), to))


def _connect(*, host: str, port: int, token: str, limit_s: float) -> dict[str, Any]:
    began = time.monotonic()
    try:
        with socket.create_connection((host, port), timeout=limit_s) as connection:
            connection.settimeout(limit_s)
            reply = connection.recv(_TOKEN_BYTES).decode(errors="replace")
            ends = {"address": connection.getpeername()[0], "from": connection.getsockname()[0]}
    except socket.gaierror:
        return {"failed": "unresolved"}
    except TimeoutError:
        return {"failed": "no reply"}
    except ConnectionRefusedError:
        return {"failed": "refused"}
    except OSError as error:
        return {"failed": error.strerror or str(error)}
    if reply != token:
        return {"failed": "another service"}
    return {**ends, "ms": 1000 * (time.monotonic() - began)}
