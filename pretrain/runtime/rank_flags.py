"""Agreement of all processes on a stop and on written checkpoints, through a key-value store."""

import time
from collections.abc import Callable
from time import monotonic
from typing import NamedTuple, Protocol

INTERVAL_S = 1.0

_PHASE = "exchanging stop flags, or waiting for another process"
_KEYS = ("posted", "writing", "stop", "result")
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.002, 0.1
# A result is one number: one bit for a stop, one for writing, then the steps between two rounds.
_STOP, _WRITING, _GAP = 1, 2, 4


class Store(Protocol):
    """The part of a `torch.distributed.Store` that the agreement uses."""

    def add(self, key: str, amount: int, /) -> int:
        """Add to a counter, which begins at 0, and return its value."""

    def delete_key(self, key: str, /) -> bool:
        """Remove a counter."""


class Flags(NamedTuple):
    """Values that all processes agree on.

    Attributes:
        stop: whether a process requests a stop.
        is_writing: whether a process is still writing its part of a checkpoint.
    """

    stop: bool = False
    is_writing: bool = True


class RankFlags:
    """Flags that all processes read at the same step, about once a second.

    In a round each process adds its flags to counters of the store. The process that posts last writes the
    result, and all processes read it in the next round. Training is synchronous, so the result is there by
    then, and no process waits. A round costs each process two short requests at any number of processes.

    The result also holds the number of steps between the next two rounds, from the measured time of a step.
    So all processes know the steps of the rounds without another message. Every process must make the same
    calls.

    Args:
        store: shared by all processes; its keys must not be used by others.
        world: number of processes.
        on_phase: called with what this process does, for the watchdog.
        interval_s: time between two rounds, at least one step. A single process has a round at each step.
    """

    def __init__(
        self,
        store: Store,
        *,
        world: int,
        on_phase: Callable[[str], None],
        interval_s: float = INTERVAL_S,
    ):
        self._store = store
        self._world = world
        self._on_phase = on_phase
        self._interval_s = interval_s if world > 1 else 0.0
        self._round = 0  # the next round, or the current one
        self._has_result = False  # of the round before, not read yet
        self._step = 0
        self._round_step = 1
        self._gap = 1  # steps from this round to the next one
        self._posted_step = 0
        self._posted_s = monotonic()

    def read(self) -> Flags:
        """Return the flags of the round before; to be called once at the end of each step.

        Returns:
            The same on every process: the defaults between two rounds, and in the first one.
        """
        self._step += 1
        if self._step < self._round_step or not self._has_result:
            return Flags()
        self._on_phase(_PHASE)
        self._gap, rest = divmod(self._wait_for_result(self._round - 1), _GAP)
        self._has_result = False
        return Flags(stop=bool(rest & _STOP), is_writing=bool(rest & _WRITING))

    def post(self, *, stop: bool, is_writing: bool) -> None:
        """Send this process's flags if a round is due; to be called after `read`.

        If all processes leave a call out, for example before a rollback, the round is at the next step.
        """
        if self._step < self._round_step:
            return
        self._on_phase(_PHASE)
        if stop:
            self._add(self._round, "stop", 1)
        if is_writing:
            self._add(self._round, "writing", 1)
        if self._add(self._round, "posted", 1) == self._world:  # after the flags, which are complete by then
            self._write_result(self._round)
        self._posted_step, self._posted_s = self._step, monotonic()
        self._round_step = self._step + self._gap
        self._round += 1
        self._has_result = True

    def _write_result(self, current: int) -> None:
        """Write the result, on the process that posted last; remove the round before, which all have read."""
        stop = _STOP if self._add(current, "stop", 0) else 0
        writing = _WRITING if self._add(current, "writing", 0) else 0
        self._add(current, "result", _GAP * self._next_gap() + writing + stop)
        if current > 0:
            for key in _KEYS:
                self._store.delete_key(f"{current - 1}/{key}")

    def _next_gap(self) -> int:
        """Steps of an interval; at most twice the last number, since a few steps may be unusually short."""
        step_s = (monotonic() - self._posted_s) / (self._step - self._posted_step)
        return max(1, min(2 * self._gap, int(self._interval_s / max(step_s, 1e-6))))

    def _wait_for_result(self, number: int) -> int:
        """Return the result of a round.

        A request that waits in the store would block NCCL's threads, which use the same connection. So this
        asks again after a pause.
        """
        pause_s = _FIRST_PAUSE_S
        while not (result := self._add(number, "result", 0)):
            posted = self._add(number, "posted", 0)
            self._on_phase(f"waiting for stop flags: {posted} of {self._world} processes have sent theirs")
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
        return result

    def _add(self, number: int, key: str, amount: int) -> int:
        return self._store.add(f"{number}/{key}", amount)
