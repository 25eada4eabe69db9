"""Signals that ask a run to stop: noted at once, obeyed at the next step at which all processes agree."""

import signal
from types import FrameType, TracebackType

from data_tools.command import EXIT_INTERRUPTED, EXIT_TERMINATED, log


class StopSignals:
    """While entered, SIGTERM and SIGINT set `received`; a second SIGINT ends the process."""

    def __init__(self) -> None:
        self.received = False
        self.exit_code = EXIT_TERMINATED
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "StopSignals":
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = True
        self.exit_code = EXIT_INTERRUPTED if number == signal.SIGINT else EXIT_TERMINATED
        log.warning("%s received: saving a checkpoint at the next report", signal.Signals(number).name)
