"""The first node of a round: it assigns ranks, collects the ends of all nodes, and decides what follows."""

import argparse
import json
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kinemae.data_tools.exit_codes import EXIT_CRASHED, describe_exit
from kinemae.launch.job import Job, JobRefused, check_job
from kinemae.launch.record import Record, now, saved_steps
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


@dataclass(frozen=True, kw_only=True)
class NodeInfo:
    """A node of a round.

    Attributes:
        slots: the most processes.
        address: by which the other nodes reach it; `port` is free there.
    """

    host: str
    pid: int
    slots: int
    address: str
    port: int


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The assignment of a round.

    Attributes:
        processes: number of processes of each node.
        master: HOST:PORT of the processes' own rendezvous.
    """

    attempt: int
    processes: list[int]
    master: str

    @property
    def world(self) -> int:
        return sum(self.processes)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The decision after a round.

    Attributes:
        code: final exit code of the run; None for a restart.
        excluded: hosts that take no further part.
    """

    code: int | None
    excluded: list[str]


_WAIT_S = 0.2
_READS, _POLL_S = 3, 1.0
_DRY_RUN_S = 300.0


class Superseded(Exception):
    """Other agents run the job: they considered this one lost, as after a suspension."""


class Leader:
    """Decides for all nodes of one round.

    Args:
        given: the options of the agent.
        record: of the run, for all rounds of this agent.
        log: prints a line for the user.
    """

    def __init__(
        self,
        joined: Round,
        job: Job,
        given: argparse.Namespace,
        *,
        record: Record,
        log: Callable[[str], None],
    ):
        self._store, self._count, self._job = joined.store, joined.nodes, job
        self._policy = PolicyConfig(**job.policy)
        self._agents, self._nodes, self._log = given.agents, given.nodes, log
        self._record, self._run_id = record, given.run_id
        self._infos: list[NodeInfo] = []
        self._attempt = 0
        self._ends: dict[int, NodeEnd] = {}
        self._beats: dict[int, Heartbeat] = {}
        self._pids: dict[str, Any] = {}

    def prepare(self) -> Plan | Verdict:
        """Wait for all nodes and assign ranks, or end the run.

        The verdict on an attempt is missing if its leader was lost.

        Raises:
            Superseded: other agents run the job.
        """
        until = time.monotonic() + self._policy.heartbeat_timeout_s
        while len(self._infos) < self._count:
            if (text := self._store.read(f"node/{len(self._infos)}")) is not None:
                self._infos.append(NodeInfo(**json.loads(text)))
            elif time.monotonic() > until:  # it was lost after it had joined: the next round is without it
                return self._publish(Verdict(code=None, excluded=list(self._history().excluded)))
            else:
                time.sleep(_WAIT_S)
        last = self._record.read()
        self._attempt = last.get("attempt", 0) + 1
        if self._attempt > 1 and last.get("decided") != last["attempt"]:
            lost = lost_node(last.get("leader", ""), 0.0, self._policy.heartbeat_timeout_s)
            verdict = self._conclude(self._decide([lost]))
            if verdict.code is not None:
                return self._publish(verdict)
        processes = self._assign([info.slots for info in self._infos])
        if processes is None:
            return self._publish(self._refuse())
        first = self._infos[0]
        plan = Plan(attempt=self._attempt, processes=processes, master=f"{first.address}:{first.port}")
        hosts = {info.host: n for info, n in zip(self._infos, processes, strict=True) if n}
        text = ", ".join(f"{count} on {host}" for host, count in hosts.items())
        self._log(f"start {self._attempt}: {plan.world} processes ({text}), rendezvous {plan.master}")
        if self._count < self._nodes[1]:
            self._log(f"WARNING: {self._count} of {self._nodes[1]} nodes take part: the run is slower")
        values = {"attempt": self._attempt, "hosts": hosts, "master": plan.master, "leader": first.host}
        self._update(state="running", agents={}, **values)
        self._store.set("plan", json.dumps(asdict(plan)))
        return plan

    def follow(self, *, stop: int | None) -> Verdict | None:
        """Read what the nodes have written; return the verdict when all have ended or are lost.

        Args:
            stop: the signal of a requested stop.

        Raises:
            Superseded: other agents run the job.
        """
        for node in set(range(self._count)) - set(self._ends):
            if (text := self._store.read(f"end/{node}")) is not None:
                self._ends[node] = NodeEnd(**json.loads(text))
            elif self._is_silent(node):
                limit_s = self._policy.heartbeat_timeout_s
                self._ends[node] = lost_node(self._infos[node].host, time.time() - limit_s, limit_s)
                self._store.set("failed", "1")
        self._note_pids()
        if len(self._ends) < self._count:
            return None
        return self._publish(self._conclude(self._decide(list(self._ends.values()), stop), stop))

    def _publish(self, verdict: Verdict) -> Verdict:
        self._store.set("verdict", json.dumps(asdict(verdict)))
        return verdict

    def _is_silent(self, node: int) -> bool:
        if node == 0:  # this one
            return False
        beats = self._beats.setdefault(node, Heartbeat())
        beats.see(self._store.read(f"beat/{node}"))
        return beats.is_silent(self._policy.heartbeat_timeout_s)

    def _note_pids(self) -> None:
        """Record the processes of each node, for `launch status`."""
        if len(self._pids) == self._count:
            return
        for node, info in enumerate(self._infos):
            if info.host not in self._pids and (text := self._store.read(f"started/{node}")) is not None:
                self._pids[info.host] = {"pid": info.pid, "ranks": json.loads(text)}
        if len(self._pids) == self._count:
            self._update(agents=self._pids)

    def _assign(self, slots: list[int]) -> list[int] | None:
        """Fill the nodes in order with as many processes as can share the batch, found by dry runs."""
        world = sum(slots)
        if self._count < self._nodes[1]:
            clips = self._job.summary.get("global_clips", 0)
            sizes = (size for size in range(world, 0, -1) if clips % size == 0)
            world = next((size for size in sizes if self._accepts(size)), 0)
        processes: list[int] = []
        for most in slots:
            processes.append(min(most, world - sum(processes)))
        return processes if world else None

    def _accepts(self, size: int) -> bool:
        try:
            argv, code = self._job.argv, self._job.code
            check_job(argv, self._job.environment, world_size=size, code=code, limit_s=_DRY_RUN_S)
        except subprocess.TimeoutExpired:  # the processes check the same
            self._log(f"the dry run with {size} processes took more than {_DRY_RUN_S:g} s: starting without")
        except JobRefused as refused:
            self._refused = refused
            return False
        return True

    def _refuse(self) -> Verdict:
        code = self._refused.code
        self._log(f"no number of processes on these nodes can share the batch: {self._refused}")
        return self._conclude(Decision(code=code, cause=FAILED, history=self._history()))

    def _history(self) -> History:
        return History(**self._record.read().get("history", {}))

    def _decide(self, ends: list[NodeEnd], stop: int | None = None) -> Decision:
        code, failure = end_of(ends)
        if failure is not None:
            self._report(failure)
        history = self._history()
        step = self._newest_step(history)
        host = None if failure is None else failure["host"]
        lost = sum(end.failures[:1] != [] and end.failures[0]["rank"] is None for end in ends)
        is_full = self._count == self._nodes[1]  # then further agents may be spare
        nodes = max(self._count, self._agents - len(history.excluded)) if is_full else self._count
        end = AttemptEnd(
            code=code,
            step=step,
            host=host,
            is_stop=stop is not None,
            nodes=nodes - lost,
            min_nodes=self._nodes[0],
        )
        return decide(history, end, self._policy.max_restarts)

    def _newest_step(self, history: History) -> int | None:
        """The newest checkpoint; as before if the file system does not respond correctly for a moment."""
        for _ in range(_READS):
            try:
                return max(saved_steps(Path(self._job.run_dir)), default=None)
            except OSError as error:
                failed = error
                time.sleep(_POLL_S)
        self._log(f"cannot read the checkpoints: {failed}; this attempt counts as one without a new one")
        return history.step

    def _conclude(self, decision: Decision, stop: int | None = None) -> Verdict:
        values: dict[str, Any] = {"history": asdict(decision.history)}
        values["decided"] = self._record.read().get("attempt", 0)
        if decision.text:
            self._log(decision.text)
        if decision.code is not None:
            signalled = "" if stop is None else f" ({signal.Signals(stop).name})"
            self._log(f"the run {describe_exit(decision.code)}{signalled}")
            values |= {"state": "ended", "code": decision.code, "cause": decision.cause, "ended": now()}
            values |= {"agents": {}}
        self._update(**values)
        return Verdict(code=decision.code, excluded=list(decision.history.excluded))

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
