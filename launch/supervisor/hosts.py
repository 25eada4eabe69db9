"""Hosts of a job: how a command gets to one, which of them answer, how processes are dealt to them."""

import json
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

_ANSWER_S = 30.0


class Link(Protocol):
    """How commands get to hosts."""

    def command(self, host: str, words: Sequence[str]) -> list[str]:
        """The argument list that executes the words on a host."""
        ...


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a host said when asked whether it is there.

    Attributes:
        port: one that was free on it.
        silence: why it counts as not there; None where it answered.
        machine: the same for hosts that are one machine with one network.
        unresolved: the error of resolving the rendezvous host there; None without one.
        hostname: its own hostname.
        own_address: the first address of that name that it can bind; None if there is none.
        has_interface: whether its environment sets Gloo's interface.
    """

    port: int = 0
    silence: str | None = None
    machine: str = ""
    unresolved: str | None = None
    hostname: str = ""
    own_address: str | None = None
    has_interface: bool = False


def ask(link: Link, hosts: Sequence[str], words: Sequence[str]) -> dict[str, Answer]:
    """Ask all hosts at once whether they are there and see the code.

    Args:
        words: the agent with `--answer`.
    """
    asked = {
        host: subprocess.Popen(
            link.command(host, words),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="backslashreplace",
            start_new_session=True,
        )
        for host in hosts
    }
    return {host: _answer(process) for host, process in asked.items()}


def _answer(process: subprocess.Popen[str]) -> Answer:
    try:
        printed, complaint = process.communicate(timeout=_ANSWER_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return Answer(silence=f"no answer within {_ANSWER_S:g} s")
    if process.returncode == 0:
        try:
            return Answer(**json.loads(printed.splitlines()[-1]))
        except (ValueError, LookupError, TypeError):
            return Answer(silence=f"it printed {printed!r} in place of an answer")
    lines = [line for line in complaint.splitlines() if line.strip()]
    return Answer(silence=lines[-1] if lines else f"exit code {process.returncode}")


def deal(slots: Mapping[str, int], world: int) -> dict[str, int]:
    """Deal processes to hosts in order, as many as each has slots; hosts that get none are left out."""
    dealt, left = {}, world
    for host, most in slots.items():
        if left > 0:
            dealt[host] = min(most, left)
            left -= dealt[host]
    return dealt
