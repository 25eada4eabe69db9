"""Validation during training: an interface that the loop calls at fixed steps, and its history.

The history is part of the run's state: checkpoints hold it, and a rollback shortens it. So an interrupted run
continues with the same best model and stops at the same step as an uninterrupted one.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from kinemae.data_tools.command import Stopped, log
from kinemae.data_tools.files import atomic_write_text, to_jsonl
from kinemae.pretrain.runtime.abort import StopSignals
from kinemae.pretrain.runtime.checkpoint import RunState
from kinemae.pretrain.runtime.processes import Processes
from kinemae.pretrain.runtime.watchdog import Watchdog

FILE = "validation.jsonl"

Line = dict[str, Any]
"""Result of one validation: "step" (0-based, the last step done) and numbers by name, as JSON."""


class Validator(Protocol):
    """A measurement on all processes together; its history may end the run early."""

    def is_due(self, done: int) -> bool:
        """Check whether it runs after `done` steps; the same on every process."""

    def open(self, history: Sequence[Line]) -> None:
        """Collective. Called before training continues with a history, for example after a rollback.

        Raises:
            CheckpointError: files that belong to the history are missing.
        """

    def validate(self, done: int, history: Sequence[Line], on_progress: Callable[[], None]) -> Line:
        """Collective. Measure the current weights, which every process has, and keep the best ones.

        Args:
            history: the lines of earlier validations, oldest first.
            on_progress: collective; to be called as often on every process. Its errors must pass.

        Returns:
            The line, the same on every process.

        Raises:
            Stopped: from `on_progress`, if a stop was requested. Nothing was written.
        """

    def has_ended(self, history: Sequence[Line]) -> bool:
        """Check whether the run ends after this history."""

    def must_pause(self, history: Sequence[Line]) -> bool:
        """Check whether the process stops after this history, with a checkpoint to continue from."""


class ValidationProgress:
    """Restart the watchdog's timer and let all processes stop together during a validation.

    Raises:
        Stopped: on every process, if a stop was requested on any.
    """

    def __init__(self, watchdog: Watchdog, signals: StopSignals, processes: Processes):
        self._watchdog = watchdog
        self._signals = signals
        self._processes = processes

    def __call__(self) -> None:
        self._watchdog.restart_timer()
        if self._processes.maximum(int(self._signals.is_requested)):
            raise Stopped("stopped during a validation")


def is_owed(validator: Validator | None, state: RunState) -> bool:
    """Check whether the validation of a state is due and missing; a stop signal interrupts validations."""
    if validator is None or state.step == 0 or not validator.is_due(state.step):
        return False
    return all(line["step"] != state.step - 1 for line in state.validations)


def write_history(run_dir: Path, history: Sequence[Line]) -> None:
    """Write all lines to `validation.jsonl`. A failure gives a warning; the next call writes them again."""
    path = run_dir / FILE
    text = to_jsonl(history)
    try:
        if (path.read_text(encoding="utf-8") if path.exists() else "") != text:
            atomic_write_text(path, text)
    except OSError as error:
        log.warning("cannot write %s (%s); training continues without it", path, error)
