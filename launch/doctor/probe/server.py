"""A node's side of `launch doctor`: it answers questions, a line each, until its input ends.

The doctor sends the files of this folder as text to a bare `python -c` (`checks/nodes.py`), so a node
needs no installed KineMAE. They import the standard library and one another; torch in functions alone.
"""

import json
import os
import socket
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from kinemae.launch.doctor.probe.devices import devices
from kinemae.launch.doctor.probe.folders import clean, decode, lock, look, read_shards, write
from kinemae.launch.doctor.probe.group import group
from kinemae.launch.doctor.probe.machine import machine
from kinemae.launch.doctor.probe.network import connect, listen, network

MARK = "kinemae-probe"
# srun hands on lines of at most 1024 characters in one piece (and none with --unbuffered): longer ones of
# several nodes may be mixed.
CHUNK = 800


def clock() -> dict[str, float]:
    """This node's clock, in seconds."""
    return {"time_s": time.time()}


def facts(**arguments: Any) -> dict[str, Any]:
    """Everything that is only looked up: the machine, its devices, its network."""
    return {"machine": machine(**arguments), "devices": devices(), "network": network()}


QUESTIONS: Mapping[str, Callable[..., Any]] = {
    "facts": facts,
    "clock": clock,
    "listen": listen,
    "connect": connect,
    "group": group,
    "write": write,
    "look": look,
    "lock": lock,
    "clean": clean,
    "read_shards": read_shards,
    "decode": decode,
}


def main() -> None:
    """Say hello, then answer until the doctor closes the line; listeners and locks end with the process."""
    node = int(sys.argv[1] if len(sys.argv) > 1 else os.environ["SLURM_PROCID"])
    name = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
    hello = {"python": sys.version.split()[0], "executable": sys.executable, "name": name}
    _say(node, 0, {"value": hello})
    held: list[Any] = []
    for line in sys.stdin:
        question = json.loads(line)
        if str(node) in question["each"]:
            _say(node, question["id"], _answer(question["ask"], question["each"][str(node)], held))


def _answer(ask: str, arguments: dict[str, Any], held: list[Any]) -> dict[str, Any]:
    if ask == "group":
        held.clear()  # the group's first rank needs the port that a listener holds
    try:
        answer = QUESTIONS[ask](**arguments)
    except Exception as error:  # the border of this program: the doctor says it in a finding
        return {"failed": f"{type(error).__name__}: {error}"}
    if isinstance(answer, tuple):  # what must stay open beside what is said
        held.append(answer[1])
        answer = answer[0]
    return {"value": answer}


def _say(node: int, question: int, answer: dict[str, Any]) -> None:
    text = json.dumps(answer)
    chunks = [text[start : start + CHUNK] for start in range(0, len(text), CHUNK)]
    for left, chunk in zip(reversed(range(len(chunks))), chunks, strict=True):
        sys.stdout.write(f"{MARK} {node} {question} {left} {chunk}\n")
    sys.stdout.flush()
