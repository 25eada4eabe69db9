"""Watchdog: a process that makes no progress logs its position and exits, so that the job can be restarted.

The loop reports each phase with its time limit. A thread measures the time; when the limit is exceeded, it
prints the stacks of all threads to standard error and exits with code 5. Every process has its own watchdog:
if one process hangs, the others wait for it in a collective, and each of them reports that.
"""

import contextlib
import faulthandler
import io
import os
import platform
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from time import monotonic
from types import TracebackType

from kinemae.data_tools.command import Stuck, log
from kinemae.data_tools.error_file import write_error_file
from kinemae.data_tools.exit_codes import EXIT_STUCK
from kinemae.pretrain.runtime.settings import TimeoutsConfig

_STDERR = 2  # the descriptor: a notebook's sys.stderr has none
_TICK_S = 0.5
_REPORT_S = 10.0  # the report may block too, for example on a full pipe
_LOCKED_FACTOR = 2.0  # on a limit, see `_arm`


@dataclass(frozen=True)
class _Phase:
    """The current phase, its limit, and its start on the watchdog's clock."""

    name: str
    key: str
    limit_s: float
    since_s: float
    step: int | None = None


class Watchdog:
    """Watch this process while entered.

    The watchdog's clock stops while the process is suspended, so a job that a scheduler suspends and resumes
    is not ended.

    Args:
        reading: returns the samples that loader workers are reading, for the report.
    """

    def __init__(
        self, config: TimeoutsConfig, *, rank: int, reading: Callable[[], Sequence[str]] = lambda: ()
    ):
        self.config = config
        self.reading = reading
        self._rank = rank
        self._clock_s = 0.0
        self._phase: _Phase | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        self._thread.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._ended.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()

    def start_phase(self, name: str, *, limit: str, step: int | None = None) -> None:
        """Begin a phase and its timer.

        Args:
            limit: the key of `timeouts` that bounds it.
        """
        limit_s: float = getattr(self.config, limit)
        self._phase = _Phase(name, limit, limit_s, self._clock_s, step)
        _arm(limit_s)

    def rename_phase(self, name: str) -> None:
        """Describe the current phase anew; its timer continues."""
        if self._phase is not None:
            self._phase = replace(self._phase, name=name)

    def restart_timer(self) -> None:
        """Restart the timer of the current phase, which waits for something with its own limit."""
        if self._phase is not None:
            self._phase = replace(self._phase, since_s=self._clock_s)

    @contextmanager
    def phase(self, name: str, *, limit: str) -> Iterator[None]:
        """A nested phase with its own limit; afterwards the outer phase's timer restarts."""
        outer = self._phase
        self.start_phase(name, limit=limit, step=None if outer is None else outer.step)
        yield
        self._phase = None if outer is None else replace(outer, since_s=self._clock_s)

    def _watch(self) -> None:
        last_s = monotonic()
        while not self._ended.wait(_TICK_S):
            now_s = monotonic()
            self._clock_s += min(now_s - last_s, 2 * _TICK_S)
            last_s = now_s
            phase = self._phase
            if phase is None:
                continue
            _arm(phase.limit_s)
            if self._clock_s - phase.since_s > phase.limit_s:
                self._end(phase)

    def _end(self, phase: _Phase) -> None:
        """Report and exit; the exit does not depend on the report."""
        reporter = threading.Thread(target=self._report, args=(phase,), daemon=True)
        reporter.start()
        reporter.join(_REPORT_S)
        os._exit(EXIT_STUCK)

    def _report(self, phase: _Phase) -> None:
        step = "" if phase.step is None else f" at step {phase.step}"
        reading = self.reading()
        loaders = f"; loader workers are reading {', '.join(reading)}" if reading else ""
        stuck = (
            f"rank {self._rank} on {platform.node()} is stuck{step}, {phase.name}, for more than "
            f"timeouts.{phase.key}={phase.limit_s:g} seconds{loaders}"
        )
        log.error(
            "%s: the job ends with exit code %d and can be started again. The stacks of all threads follow. "
            "The cause is on a rank without a message like this one",
            stuck, EXIT_STUCK,
        )  # fmt: skip
        write_error_file(Stuck(stuck), EXIT_STUCK, lost_peer=False)
        with contextlib.suppress(OSError, io.UnsupportedOperation):  # standard error is closed or captured
            faulthandler.dump_traceback(_STDERR, all_threads=True)
            sys.stderr.flush()


def _arm(limit_s: float) -> None:
    """Make faulthandler end the process unless this is called again in time.

    If C code hangs while it holds Python's lock, the watchdog's thread stops too; faulthandler needs no lock.
    It prints the stacks and exits with code 1, the only code that it supports. Its clock includes time in
    which a process was suspended, so its limit is longer.
    """
    faulthandler.dump_traceback_later(_LOCKED_FACTOR * limit_s, exit=True, file=_STDERR)
