"""Restart policy: the decision after an attempt, from its end and the history of the run.

Pure functions, the same on all clusters. Uses the standard library and `exit_codes.py` only.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from kinemae.data_tools.exit_codes import EXIT_CRASHED, EXIT_OK, EXIT_STOPPED, is_restartable

ARRIVE_S = 600.0  # for the agents of a start on slow file systems
FINISHED, STOPPED, FAILED, TOO_FEW_NODES = "finished", "stopped", "failed", "too few nodes"
_FIRST_FAILURES = 2  # of one host in a row, after which it is excluded


@dataclass(frozen=True, kw_only=True)
class PolicyConfig:
    """Limits of a run under supervision, in `job.json` for all agents.

    Attributes:
        max_restarts: restarts in a row without a new checkpoint.
        grace_s: from SIGTERM to SIGKILL for the other processes after a failure.
        stop_s: the same after a stop; the processes write a checkpoint in this time.
        heartbeat_timeout_s: an agent without a heartbeat for this time is lost.
        host_wait_s: how long a restart waits for the fewest hosts.
    """

    max_restarts: int = 3
    grace_s: float = 20.0
    stop_s: float = 120.0
    heartbeat_timeout_s: float = 30.0
    host_wait_s: float = 60.0


@dataclass(frozen=True, kw_only=True)
class History:
    """Facts about earlier attempts, in `launch.json`.

    Attributes:
        step: newest checkpoint after the last attempt; None without one.
        restarts: restarts in a row without a new checkpoint.
        host, host_failures: the host whose processes failed first, and how often in a row without a new
            checkpoint.
        excluded: hosts that take no further part.
        queued_step, requeues: newest checkpoint at the last requeue, and requeues in a row without a new one.
    """

    step: int | None = None
    restarts: int = 0
    host: str | None = None
    host_failures: int = 0
    excluded: Sequence[str] = ()
    queued_step: int | None = None
    requeues: int = 0


@dataclass(frozen=True, kw_only=True)
class Decision:
    """The final exit code of the run with its cause, or None for a restart; and a text for the log."""

    code: int | None
    history: History
    cause: str = ""
    text: str = ""


@dataclass(frozen=True, kw_only=True)
class AttemptEnd:
    """How an attempt ended: the code and host of the first failure or of a stop, and the newest checkpoint.

    `nodes` can take part in the next attempt, which needs `min_nodes`.
    """

    code: int
    step: int | None
    host: str | None = None
    is_stop: bool = False
    nodes: int = 1
    min_nodes: int = 1


def decide(history: History, end: AttemptEnd, max_restarts: int) -> Decision:
    """Decide whether a run has ended, or restarts, and without which hosts."""
    has_progress = end.step != history.step
    is_same_host = end.host is not None and end.host == history.host and not has_progress
    history = replace(
        history,
        step=end.step,
        restarts=1 if has_progress else history.restarts + 1,
        host=end.host,
        host_failures=history.host_failures + 1 if is_same_host else 1,
    )
    if end.is_stop or not is_restartable(end.code):
        cause = STOPPED if end.is_stop or end.code == EXIT_STOPPED else FAILED
        return Decision(code=end.code, cause=FINISHED if end.code == EXIT_OK else cause, history=history)
    is_bad = end.host is not None and history.host_failures >= _FIRST_FAILURES
    if is_bad and end.nodes > end.min_nodes:
        history = replace(history, excluded=[*history.excluded, str(end.host)])
    if history.restarts > max_restarts:
        text = f"giving up after {max_restarts} restarts without a new checkpoint (max_restarts)"
        return Decision(code=end.code, cause=FAILED, history=history, text=text)
    start = "the start" if end.step is None else f"step {end.step}"
    text = f"restart {history.restarts} of {max_restarts}, from {start}"
    if end.host in history.excluded:
        text += f", without {end.host}: its processes failed first {history.host_failures} times in a row"
    return Decision(code=None, history=history, text=text)


def requeue(history: History, cause: str, *, step: int | None, most: int) -> History | None:
    """Decide whether a scheduler starts a run again that has ended; return the new history, None for no.

    After a stop or the loss of nodes, it does so at most `most` times in a row without a new checkpoint.
    After failures it does so only with a new checkpoint, without the host that failed last.
    """
    has_progress = step != history.queued_step
    requeues = 1 if has_progress else history.requeues + 1
    is_bad = history.host is not None and history.host_failures >= _FIRST_FAILURES
    if cause == FAILED:
        if not (has_progress and is_bad):
            return None
        excluded = [*dict.fromkeys([*history.excluded, str(history.host)])]
        history = replace(history, excluded=excluded, host_failures=0, restarts=0)
    elif cause not in (STOPPED, TOO_FEW_NODES) or requeues > most:
        return None
    return replace(history, queued_step=step, requeues=requeues)


class NodeEnd(NamedTuple):
    """The end of a node in an attempt: failures (`Rank.failure`), and the code of a stopped process or 0."""

    failures: Sequence[Mapping[str, Any]] = ()
    stop_code: int = 0


def lost_node(host: str, time_s: float, limit_s: float) -> NodeEnd:
    """The end of a node whose agent has no heartbeat. It counts as no failure of its host's processes."""
    failure = node_failure(host, time_s, f"{host} is lost: no heartbeat for {limit_s:g} s")
    return NodeEnd([{**failure, "is_lost": True}])


def node_failure(host: str, time_s: float, message: str) -> dict[str, Any]:
    """The failure of a whole node, in the form of `Rank.failure`."""
    failure = {"rank": None, "host": host, "code": EXIT_CRASHED, "time_s": time_s, "is_victim": False}
    return {**failure, "message": message, "log": None, "last_lines": []}


def end_of(ends: Sequence[NodeEnd]) -> tuple[int, Mapping[str, Any] | None]:
    """The exit code of an attempt and its first failure: the earliest that is no victim of another one.

    Processes that lost their connection to a stopped one are no failure of the run.
    """
    failures = [failure for end in ends for failure in end.failures]
    stop_code = max(end.stop_code for end in ends)  # that of a death by a signal is larger than 75
    if not failures or (stop_code and all(failure["is_victim"] for failure in failures)):
        return stop_code, None
    first = min(failures, key=lambda failure: (failure["is_victim"], failure["time_s"]))
    return first["code"], first
