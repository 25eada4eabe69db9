"""Successive halving (arXiv 1502.07943): all trials run to a rung, the best go on to the next one.

A trial is one `finetune train` run with the schedule of its whole length. It pauses after the validation of
a rung, with a checkpoint, and continues exactly there. Nothing is decided from a shortened schedule. All
decisions are functions of the histories in the trials' folders: a killed sweep decides the same again.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kinemae.data_tools.command import Stopped
from kinemae.data_tools.config import require
from kinemae.finetune.compare import RESULT_NAME
from kinemae.finetune.sweep.space import Values
from kinemae.finetune.validation.selection import Selection
from kinemae.pretrain.runtime.validation import FILE

_DIVERGED = "diverged.txt"  # in the folder of such a trial: the reason


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """Settings of a sweep, given as `sweep.KEY=VALUE`.

    Attributes:
        trials: number of trials to draw; null: the whole grid.
        rungs: number of rungs; the last one is the whole run. 1: no halving.
        eta: factor between the lengths of two rungs; 1 / eta of the trials go on.
        processes: trials that run at once. On a machine with GPUs each takes one of them in turn.
        fraction: fraction of data.train that is held out to select the best trial.
        seed: of drawn trials.
    """

    trials: int | None = None
    rungs: int = 3
    eta: int = 3
    processes: int = 1
    fraction: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        require(self.trials is None or self.trials >= 1, "sweep.trials", "be null or at least 1", self.trials)
        require(self.rungs >= 1, "sweep.rungs", "be at least 1", self.rungs)
        require(self.eta >= 2, "sweep.eta", "be at least 2", self.eta)
        require(self.processes >= 1, "sweep.processes", "be at least 1", self.processes)
        require(0 < self.fraction < 1, "sweep.fraction", "lie between 0 and 1", self.fraction)

    def validations(self, rung: int) -> int:
        """Number of validations at the end of a rung: 1, eta, eta ** 2, ..."""
        return self.eta**rung

    @property
    def all_validations(self) -> int:
        """Number of validations of a whole run."""
        return self.validations(self.rungs - 1)


@dataclass(kw_only=True)
class Trial:
    """One run of a sweep.

    Attributes:
        values: the values of the swept keys.
        folder: its run folder.
        rung: the last rung to which it ran; -1 for none.
        failure: why it has no score; empty if it has one.
    """

    number: int
    values: Values
    folder: Path
    rung: int = -1
    failure: str = ""

    def history(self) -> list[dict[str, Any]]:
        """The lines of its validations so far."""
        path = self.folder / FILE
        if not path.exists():
            return []
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]

    @property
    def is_finished(self) -> bool:
        """True if its whole run is done, or has ended early."""
        return (self.folder / RESULT_NAME).exists()

    def has_reached(self, rung: int, sweep: SweepConfig) -> bool:
        """Check whether the trial needs no further training for a rung."""
        if self.read_failure() or self.is_finished:
            return True
        return rung < sweep.rungs - 1 and len(self.history()) >= sweep.validations(rung)

    def fail(self, reason: str) -> None:
        """Record for later starts that the trial diverges."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / _DIVERGED).write_text(reason + "\n", encoding="utf-8")
        self.failure = reason

    def read_failure(self) -> str:
        """The recorded reason; empty for none."""
        marker = self.folder / _DIVERGED
        if not self.failure and marker.exists():
            self.failure = marker.read_text(encoding="utf-8").strip()
        return self.failure

    def best(self, rung: int, sweep: SweepConfig, selection: Selection) -> dict[str, Any] | None:
        """The best validation up to a rung; None without a finite one."""
        return None if self.failure else selection.best(self.history()[: sweep.validations(rung)])


def halve(
    trials: Sequence[Trial],
    sweep: SweepConfig,
    selection: Selection,
    advance: Callable[[Sequence[Trial], int], None],
) -> Trial | None:
    """Run all rungs and return the best trial; None if every trial failed.

    Args:
        advance: trains these trials up to a rung, and records failures.

    Raises:
        Stopped: a trial did not reach its rung.
    """
    left = list(trials)
    for rung in range(sweep.rungs):
        advance([trial for trial in left if not trial.has_reached(rung, sweep)], rung)
        for trial in left:
            if not trial.has_reached(rung, sweep):
                what = f"trial {trial.number} was stopped before the end of its rung"
                raise Stopped(f"{what}; repeat the command to continue the sweep")
            trial.rung = rung
        ranked = ranking(left, rung, sweep, selection)
        left = ranked[: max(1, len(left) // sweep.eta)]
    return left[0] if left else None


def ranking(trials: Sequence[Trial], rung: int, sweep: SweepConfig, selection: Selection) -> list[Trial]:
    """Trials with a score at a rung, best first; of equal ones the lower number."""
    scored = []
    for trial in trials:
        line = trial.best(rung, sweep, selection)
        if line is not None:
            scored.append((-selection.gain(line), trial.number, trial))
    return [trial for _, _, trial in sorted(scored, key=lambda entry: entry[:2])]
