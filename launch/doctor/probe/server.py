"""The probe of `launch doctor` on a node: answer one request per line until the input ends.

The doctor sends the files of this folder as text to `python -c` (`probes.py`), so a node needs no installed
KineMAE. They import the standard library and one another; torch only inside functions.
"""

import json
import os
import socket
import sys
from collections.abc import Callable, Mapping
from typing import Any

from kinemae.launch.doctor.probe.devices import devices
from kinemae.launch.doctor.probe.folders import clean, lock, look, read_shards, write
from kinemae.launch.doctor.probe.group import group
from kinemae.launch.doctor.probe.machine import machine
from kinemae.launch.doctor.probe.network import connect, listen, network

MARK = "kinemae-probe"
# srun keeps lines of at most 1024 characters whole (none with --unbuffered); it may mix longer ones of nodes.
CHUNK = 800


def facts(**arguments: Any) -> dict[str, Any]:
    """Description of the machine, its devices and its network."""
    return {"machine": machine(**arguments), "devices": devices(), "network": network()}


HANDLERS: Mapping[str, Callable[..., Any]] = {
    "facts": facts,
    "listen": listen,
    "connect": connect,
    "group": group,
    "write": write,
    "look": look,
    "lock": lock,
    "clean": clean,
    "read_shards": read_shards,
}


def main() -> None:
    """Send the first reply, then answer requests; listeners and locks end with the process."""
    node = int(sys.argv[1] if len(sys.argv) > 1 else os.environ["SLURM_PROCID"])
    name = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
    hello = {"python": sys.version.split()[0], "executable": sys.executable, "name": name}
    _send(node, 0, {"value": hello})
    held: list[Any] = []
    for line in sys.stdin:
        request = json.loads(line)
        if str(node) in request["each"]:
            _send(node, request["id"], _answer(request["ask"], request["each"][str(node)], held))


def _answer(ask: str, arguments: dict[str, Any], held: list[Any]) -> dict[str, Any]:
    if ask == "group":
        held.clear()  # the group's first rank needs the listener's port
    try:
        answer = HANDLERS[ask](**arguments)
    except Exception as error:  # the doctor reports it as a check result
        return {"failed": f"{type(error).__name__}: {error}"}
    if isinstance(answer, tuple):  # the reply, and an object to keep open
        held.append(answer[1])
        answer = answer[0]
    return {"value": answer}


def _send(node: int, request: int, answer: dict[str, Any]) -> None:
    text = json.dumps(answer)
    chunks = [text[start : start + CHUNK] for start in range(0, len(text), CHUNK)]
    for left, chunk in zip(reversed(range(len(chunks))), chunks, strict=True):
        sys.stdout.write(f"{MARK} {node} {request} {left} {chunk}\n")
    sys.stdout.flush()
