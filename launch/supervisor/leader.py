"""The first node of a round: it assigns ranks, collects the ends of all nodes, and decides what follows."""

import argparse
import json
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from kinemae.data_tools.exit_codes import EXIT_CONFIG, EXIT_CRASHED, describe_exit
from kinemae.launch.job import Job
from kinemae.launch.record import Record, newest_step, now
from kinemae.launch.supervisor.membership import Heartbeat, Round
from kinemae.launch.supervisor.policy import (
    FAILED,
    AttemptEnd,
    Decision,
    History,
    NodeEnd,
    PolicyConfig,
    decide,
    end_of,
    lost_node,
)
from kinemae.launch.supervisor.rank import log_line


class NodeInfo(NamedTuple):
    """A node of a round: its most processes, the address by which others reach it, and a free port."""

    host: str
    slots: int
    address: str
    port: int


class Plan(NamedTuple):
    """The number of processes of each node in an attempt, and HOST:PORT of their own rendezvous."""

    attempt: int
    processes: list[int]
    master: str


class Verdict(NamedTuple):
    """The final exit code of the run, None for a restart; and the hosts that take no further part."""

    code: int | None
    excluded: Sequence[str]


class Superseded(Exception):
    """Other agents run the job: they considered this one lost, as after a suspension."""


class Leader:
    """Decides for all nodes of one round. Raises `Superseded` if other agents run the job.

    Args:
        given: the options of the agent.
        record: of the run, for all rounds of this agent.
    """

    def __init__(self, joined: Round, job: Job, given: argparse.Namespace, *, record: Record):
        self._store, self._count, self._job = joined.store, joined.nodes, job
        self._policy = PolicyConfig(**job.policy)
        self._agents, self._nodes = given.agents, given.nodes
        self._log = partial(log_line, Path(job.run_dir))
        self._record, self._run_id = record, given.run_id
        self._infos: list[NodeInfo] = []
        self._until = time.monotonic() + self._policy.heartbeat_timeout_s  # one may be lost
        self._attempt = 0
        self._ends: dict[int, NodeEnd] = {}
        self._beats: dict[int, Heartbeat] = {}

    def prepare(self) -> Plan | Verdict | None:
        """Assign ranks, or end the run; None until all nodes have described themselves.

        The verdict on an attempt is missing if its leader was lost.
        """
        while (text := self._store.read(f"node/{len(self._infos)}")) is not None:
            self._infos.append(NodeInfo(*json.loads(text)))
        if len(self._infos) < self._count:
            if time.monotonic() < self._until:
                return None
            return self._publish(Verdict(None, self._history().excluded))  # the next round is without it
        last = self._record.read()
        self._attempt = last.get("attempt", 0) + 1
        if self._attempt > 1 and last.get("decided") != last["attempt"]:
            lost = lost_node(last.get("leader", ""), 0.0, self._policy.heartbeat_timeout_s)
            verdict = self._conclude(self._decide([lost]))
            if verdict.code is not None:
                return self._publish(verdict)
        processes = self._assign([info.slots for info in self._infos])
        if not processes:
            self._log("no number of processes on these nodes can share the batch")
            failed = Decision(code=EXIT_CONFIG, cause=FAILED, history=self._history())
            return self._publish(self._conclude(failed))
        first = self._infos[0]
        plan = Plan(attempt=self._attempt, processes=processes, master=f"{first.address}:{first.port}")
        hosts = {info.host: n for info, n in zip(self._infos, processes, strict=True) if n}
        text = ", ".join(f"{count} on {host}" for host, count in hosts.items())
        self._log(f"start {self._attempt}: {sum(processes)} processes ({text}), rendezvous {plan.master}")
        if self._count < self._nodes[1]:
            self._log(f"WARNING: {self._count} of {self._nodes[1]} nodes take part: the run is slower")
        self._update(state="running", attempt=self._attempt, hosts=hosts, leader=first.host)
        self._store.set("plan", json.dumps(plan))
        return plan

    def follow(self, *, stop: int | None) -> Verdict | None:
        """Read what the nodes have written; return the verdict when all have ended or are lost.

        Args:
            stop: the signal of a requested stop.
        """
        for node in set(range(self._count)) - set(self._ends):
            if (text := self._store.read(f"end/{node}")) is not None:
                self._ends[node] = NodeEnd(*json.loads(text))
            elif self._is_silent(node):
                limit_s = self._policy.heartbeat_timeout_s
                self._ends[node] = lost_node(self._infos[node].host, time.time() - limit_s, limit_s)
                self._store.set("failed", "1")
        if len(self._ends) < self._count:
            return None
        return self._publish(self._conclude(self._decide(list(self._ends.values()), stop), stop))

    def _publish(self, verdict: Verdict) -> Verdict:
        self._store.set("verdict", json.dumps(verdict))
        return verdict

    def _is_silent(self, node: int) -> bool:
        if node == 0:  # this one
            return False
        beats = self._beats.setdefault(node, Heartbeat())
        beats.see(self._store.read(f"beat/{node}"))
        return beats.is_silent(self._policy.heartbeat_timeout_s)

    def _assign(self, slots: list[int]) -> list[int]:
        """Fill the nodes in order, fewer nodes by as many processes as can share the batch; empty if none."""
        world = sum(slots)
        if self._count < self._nodes[1]:
            counts = self._job.summary.get("process_counts", [])
            world = max((count for count in counts if count <= world), default=0)
        processes: list[int] = []
        for most in slots if world else ():
            processes.append(min(most, world - sum(processes)))
        return processes

    def _history(self) -> History:
        return History(**self._record.read().get("history", {}))

    def _decide(self, ends: list[NodeEnd], stop: int | None = None) -> Decision:
        code, failure = end_of(ends)
        if failure is not None:
            self._report(failure)
        history = self._history()
        step = newest_step(Path(self._job.run_dir), history.step)
        is_own = failure is not None and not failure.get("is_lost")
        lost = sum(any(one.get("is_lost") for one in end.failures) for end in ends)
        is_full = self._count == self._nodes[1]  # then further agents may be spare
        nodes = max(self._count, self._agents - len(history.excluded)) if is_full else self._count
        end = AttemptEnd(
            code=code,
            step=step,
            host=failure["host"] if failure is not None and is_own else None,
            is_stop=stop is not None,
            nodes=nodes - lost,
            min_nodes=self._nodes[0],
        )
        return decide(history, end, self._policy.max_restarts)

    def _conclude(self, decision: Decision, stop: int | None = None) -> Verdict:
        values: dict[str, Any] = {"history": asdict(decision.history)}
        values["decided"] = self._record.read().get("attempt", 0)
        if decision.text:
            self._log(decision.text)
        if decision.code is not None:
            signalled = "" if stop is None else f" ({signal.Signals(stop).name})"
            self._log(f"the run {describe_exit(decision.code)}{signalled}")
            values |= {"state": "ended", "code": decision.code, "cause": decision.cause, "ended": now()}
        self._update(**values)
        return Verdict(decision.code, decision.history.excluded)

    def _update(self, **values: Any) -> None:
        last = self._record.read()
        is_over = self._attempt and last.get("attempt", 0) > self._attempt
        if is_over or last.get("run_id", self._run_id) != self._run_id:
            raise Superseded
        self._record.update(**values)

    def _report(self, failure: Mapping[str, Any]) -> None:
        """Log the first failure and keep it for `launch status`."""
        self._update(failure={**failure, "attempt": self._record.read()["attempt"]})
        if failure["rank"] is None:
            self._log(failure["message"])
            return
        code = failure["code"] or EXIT_CRASHED
        text = f"rank {failure['rank']} on {failure['host']} {describe_exit(code)} (exit code {code})"
        if failure["is_victim"]:
            text += ", after another process whose failure is unknown"
        # The output of rank 0 is on the terminal already.
        lines = [] if failure["rank"] == 0 else failure["last_lines"]
        lines = lines and ["its last lines:", *lines]
        self._log("\n    ".join([f"{text}; full output: {failure['log']}", *lines]))
