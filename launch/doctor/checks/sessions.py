"""What a doctor's round works with: the nodes as a job would use them, and what they have said so far."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kinemae.launch.doctor.checks.nodes import Nodes


@dataclass(frozen=True, kw_only=True)
class Target:
    """The nodes of a cluster as a job would use them.

    Attributes:
        names: how the cluster file calls the nodes; empty where a scheduler deals them out.
        processes: how many each is to run.
        commands: how to start the probes, and for which nodes each speaks.
        environment: what the cluster file sets for each process.
        master: name or address of the first node, as the others are to know it; given the name of the
            first node that answered.
        master_port: where ranks are to meet; 0 for any that is free.
        link_gbit: what the link between nodes should give; None to ask the drivers.
        start_s: how long a probe may take to start; a scheduler's queue is part of it.
        why_not_started: gives the scheduler's reason if probes have not started in time.
        end: always called when the doctor ends: cancels its jobs.
    """

    names: list[str]
    processes: list[int]
    commands: Sequence[tuple[Sequence[str], Sequence[int]]]
    environment: Mapping[str, str]
    master: Callable[[str], str]
    master_port: int = 0
    link_gbit: float | None = None
    start_s: float = 30.0
    why_not_started: Callable[[], str] | None = None
    end: Callable[[], None] | None = None


@dataclass
class Round:
    """What is known so far. `reports` holds the answers by the node's name, as `--json` prints them."""

    target: Target
    nodes: Nodes
    reports: dict[str, dict[str, Any]] = field(default_factory=dict)

    def name(self, node: int) -> str:
        """What findings call a node."""
        return self.nodes.names[node]

    def everybody(self, **arguments: Any) -> dict[int, dict[str, Any]]:
        """The same arguments for all nodes that answer."""
        return {node: dict(arguments) for node in self.nodes.present()}

    def keep(self, what: str, answers: Mapping[int, Any]) -> dict[str, Any]:
        """Note the answers in the reports, and return them by name."""
        for node, answer in answers.items():
            self.reports.setdefault(self.name(node), {})[what] = answer
        return {self.name(node): answer for node, answer in answers.items()}
