"""Signals that ask a run to stop: noted at once, obeyed at the next step at which all processes agree."""

import signal
from types import FrameType, TracebackType

from kinemae.data_tools.command import log
from kinemae.data_tools.exit_codes import EXIT_INTERRUPTED, EXIT_REQUEUE, EXIT_TERMINATED

_EXIT_CODES = {
    signal.SIGTERM: EXIT_TERMINATED,
    signal.SIGINT: EXIT_INTERRUPTED,
    signal.SIGUSR1: EXIT_REQUEUE,  # Slurm's warning before the time is up, with --signal=USR1@SECONDS
}


class StopSignals:
    """While entered, the signals that ask for a stop set `exit_code`; a second SIGINT ends the process.

    Attributes:
        exit_code: what the run is to leave with; 0 while nobody asked.
    """

    def __init__(self) -> None:
        self.exit_code = 0
        self._untold = ""
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "StopSignals":
        for number in _EXIT_CODES:
            self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def tell(self) -> None:
        """Say in the log, once, what was received: not in the handler, which may break into a log line."""
        if self._untold:
            log.warning("%s received: saving a checkpoint, then leaving", self._untold)
        self._untold = ""

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.exit_code and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not self.exit_code:
            self._untold = signal.Signals(number).name
            self.exit_code = _EXIT_CODES[signal.Signals(number)]
