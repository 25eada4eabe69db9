"""Exit codes of all commands, and how a supervisor reacts to each. Uses the standard library only."""

EXIT_OK = 0
EXIT_CRASHED = 1  # any unexpected error; restartable
EXIT_CONFIG = 2  # wrong usage or config
EXIT_DATA = 3
EXIT_CHECKPOINT = 4
EXIT_STUCK = 5  # a timeout of a step, a store or a file system; restartable
EXIT_DIVERGED = 6
# A training that stopped on request, with a checkpoint: EX_TEMPFAIL of sysexits.h. A process that a signal
# killed has 128 plus the signal's number, as in a shell: it saved nothing.
EXIT_STOPPED = 75
EXIT_INTERRUPTED = 130  # SIGINT to a command that saves nothing
EXIT_TERMINATED = 143

FAILED = frozenset({EXIT_CONFIG, EXIT_DATA, EXIT_CHECKPOINT, EXIT_DIVERGED})  # a restart fails again

_DESCRIPTIONS = {
    EXIT_OK: "finished",
    EXIT_CONFIG: "failed: wrong usage or config",
    EXIT_DATA: "failed: the data cannot be used",
    EXIT_CHECKPOINT: "failed: a checkpoint cannot be read or written",
    EXIT_STUCK: "failed: a step, a store or a file system did not respond in time",
    EXIT_DIVERGED: "failed: the loss diverged",
    EXIT_STOPPED: "stopped on request, with a checkpoint",
}


def is_restartable(code: int) -> bool:
    """Check whether a supervisor may restart the job: after a crash, death by a signal, or a timeout."""
    return code not in FAILED | {EXIT_OK, EXIT_STOPPED}


def describe_exit(code: int) -> str:
    """Describe an exit code in words; codes above 128 are deaths by a signal."""
    if code in _DESCRIPTIONS:
        return _DESCRIPTIONS[code]
    return f"failed: killed by signal {code - 128}" if 128 < code < 128 + 65 else "failed: crashed"
