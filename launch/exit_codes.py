"""What the exit code of a process says about what to do next.

`data_tools/command.py` holds the same numbers; this room imports nothing of the others.
"""

FINE = 0
CRASHED = 1
USAGE = 2
DATA = 3
CHECKPOINT = 4
STUCK = 5
DIVERGED = 6
INTERRUPTED = 130
USER_SIGNAL = 138
TERMINATED = 143

STOPPED = frozenset({INTERRUPTED, USER_SIGNAL, TERMINATED})
FINAL = frozenset({FINE, USAGE, DATA, CHECKPOINT, DIVERGED}) | STOPPED

_MEANINGS = {
    FINE: "finished",
    USAGE: "refused: wrong usage or config",
    DATA: "failed: the data cannot be used",
    CHECKPOINT: "failed: a checkpoint cannot be read or written",
    STUCK: "failed: stuck, a step, a store or a file system did not answer in time",
    DIVERGED: "failed: the loss diverged",
    INTERRUPTED: "stopped by SIGINT, with a checkpoint",
    USER_SIGNAL: "stopped by SIGUSR1, with a checkpoint",
    TERMINATED: "stopped by SIGTERM, with a checkpoint",
}


def is_crash(code: int) -> bool:
    """Whether a supervisor may start the job again: a crash, a death by a signal, or the watchdog's end."""
    return code not in FINAL


def meaning(code: int) -> str:
    """An exit code in words; those above 128 are deaths by a signal, as a shell has them."""
    if code in _MEANINGS:
        return _MEANINGS[code]
    return f"failed: killed by signal {code - 128}" if 128 < code < 128 + 65 else "failed: crashed"
