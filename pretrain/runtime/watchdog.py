"""The watchdog: a process that gets no further says where it is, and ends, so that the job can start again.

The loop tells it what it is doing and how long that may take. A thread of its own counts the time; when that
is up, the stacks of all threads go to standard error and the process leaves with exit code 5. Every process
has its own: where one of them is frozen, the others wait for it in a collective, and each says so.
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
from dataclasses import dataclass
from time import monotonic
from types import TracebackType

from kinemae.data_tools.command import log
from kinemae.data_tools.config import require
from kinemae.data_tools.exit_codes import EXIT_STUCK

_TICK_S = 0.5
_LAST_WORDS_S = 10.0  # saying where one is may hang too, on a pipe that nobody reads
_LOCKED_FACTOR = 2.0  # on a limit, see `_arm`


@dataclass(frozen=True, kw_only=True)
class TimeoutsConfig:
    """How long things may take before a run counts as stuck, and who counts as slow.

    Attributes:
        start_s: until all processes have met, and then until the engine stands and a checkpoint is
            loaded.
        step_s: one step, its report included.
        first_step_s: the first step after a start, which may compile; and a step after pictures or
            measures, which the first process takes while the others wait.
        save_s: one checkpoint.
        straggler_ratio: a process whose own work takes so many times the median's is named in the log.
        lock_wait_s: how long a run waits for another one in the same folder to end.
    """

    start_s: float = 600.0
    step_s: float = 600.0
    first_step_s: float = 1800.0
    save_s: float = 1800.0
    straggler_ratio: float = 1.5
    lock_wait_s: float = 60.0

    def __post_init__(self) -> None:
        for key in ("start_s", "step_s", "first_step_s", "save_s"):
            require(getattr(self, key) > 0, f"timeouts.{key}", "be above 0", getattr(self, key))
        require(
            self.first_step_s >= self.step_s,
            "timeouts.first_step_s",
            f"be at least timeouts.step_s={self.step_s:g}",
            self.first_step_s,
        )
        require(self.straggler_ratio > 1, "timeouts.straggler_ratio", "be above 1", self.straggler_ratio)
        require(self.lock_wait_s >= 0, "timeouts.lock_wait_s", "be 0 or more", self.lock_wait_s)

    @property
    def longest_s(self) -> float:
        """The longest that any of it may take."""
        return max(self.start_s, self.first_step_s, self.save_s)


@dataclass(frozen=True)
class _Post:
    """What the process is at, by which key's limit, and since when by the watchdog's own clock."""

    place: str
    key: str
    limit_s: float
    since_s: float
    step: int | None = None


class Watchdog:
    """Watches its process while entered.

    Its clock runs only while the process does: a job that is suspended as a whole (Ctrl-Z, a scheduler) and
    goes on later is not held against itself.

    Args:
        reading: what loader workers are reading, for the report.
    """

    def __init__(
        self, config: TimeoutsConfig, *, rank: int, reading: Callable[[], Sequence[str]] = lambda: ()
    ):
        self.config = config
        self.reading = reading
        self._rank = rank
        self._clock_s = 0.0
        self._post: _Post | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        self._thread.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._ended.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()

    def enter(self, place: str, *, limit: str, step: int | None = None) -> None:
        """Begin something; its time runs from here.

        Args:
            limit: the key of `timeouts` that bounds it.
        """
        limit_s: float = getattr(self.config, limit)
        self._post = _Post(place, limit, limit_s, self._clock_s, step)
        _arm(limit_s)

    def move(self, place: str) -> None:
        """The same thing goes on at another place; its time runs on."""
        post = self._post
        if post is not None:
            self._post = _Post(place, post.key, post.limit_s, post.since_s, post.step)

    def renew(self) -> None:
        """Restart the timer of the current phase, which waits for something with its own limit."""
        post = self._post
        if post is not None:
            self._post = _Post(post.place, post.key, post.limit_s, self._clock_s, post.step)

    @contextmanager
    def during(self, place: str, *, limit: str) -> Iterator[None]:
        """Something with a limit of its own in the midst of another, whose time begins again afterwards."""
        before = self._post
        self.enter(place, limit=limit, step=None if before is None else before.step)
        yield
        self._post = None
        if before is not None:
            self._post = _Post(before.place, before.key, before.limit_s, self._clock_s, before.step)

    def _watch(self) -> None:
        last_s = monotonic()
        while not self._ended.wait(_TICK_S):
            now_s = monotonic()
            self._clock_s += min(now_s - last_s, 2 * _TICK_S)
            last_s = now_s
            post = self._post
            if post is None:
                continue
            _arm(post.limit_s)
            if self._clock_s - post.since_s > post.limit_s:
                self._end(post)

    def _end(self, post: _Post) -> None:
        """Say where the process is, and end it; saying may not work, ending does."""
        speaker = threading.Thread(target=self._say, args=(post,), daemon=True)
        speaker.start()
        speaker.join(_LAST_WORDS_S)
        os._exit(EXIT_STUCK)

    def _say(self, post: _Post) -> None:
        step = "" if post.step is None else f" at step {post.step}"
        reading = self.reading()
        loaders = f"; loader workers are reading {', '.join(reading)}" if reading else ""
        log.error(
            "rank %d on %s is stuck%s, %s, for more than timeouts.%s=%g seconds%s: the job ends with exit "
            "code %d and can be started again. All stacks of this process follow; a rank that says nothing "
            "like this is the one that the others wait for",
            self._rank, platform.node(), step, post.place, post.key, post.limit_s, loaders, EXIT_STUCK,
        )  # fmt: skip
        with contextlib.suppress(OSError, io.UnsupportedOperation):  # no standard error, or a captured one
            faulthandler.dump_traceback(sys.stderr, all_threads=True)
            sys.stderr.flush()


def _arm(limit_s: float) -> None:
    """Have faulthandler end the process should nobody call this again in time.

    Where C code hangs while it holds Python's lock, the watchdog's thread stands still as well;
    faulthandler's needs no lock. It shows the stacks and leaves with 1, since it knows no other code. It also
    counts the time in which a process was suspended, so it gets more of it.
    """
    faulthandler.dump_traceback_later(_LOCKED_FACTOR * limit_s, exit=True)
