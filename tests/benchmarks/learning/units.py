"""Units of work: each has an id from its config, runs in its own process, and leaves one JSON file.

WORK/units/LABEL/         folder of a unit: its config, its log, and what it makes
WORK/results/LABEL.json   result and cost of a finished unit; it is never repeated
"""

import fcntl
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kinemae.data_tools.files import atomic_write_text
from kinemae.pretrain.runtime.checkpoint_files import list_checkpoints
from tests.benchmarks.learning.peer import steps_done
from tests.benchmarks.learning.settings import OURS, TEACHER

PRETRAIN, FROZEN, ATTENTIVE, TUNED, FLOORS = "pretrain", "frozen", "attentive", "finetune", "floors"
RUN = "run"  # the run folder of a pretraining, in the folder of its unit


@dataclass(frozen=True, kw_only=True)
class Unit:
    """One measurement. Its result is a function of its config.

    Attributes:
        kind: `PRETRAIN`, `FROZEN`, `ATTENTIVE`, `TUNED` (one fold) or `FLOORS`.
        method, flops, seed: of the row, for labels and tables.
        config: everything that the result depends on.
        needs: the pretraining whose encoder is used.
        teacher: the pretraining of a pretraining's teacher.
        places: paths for the process of the unit; the result does not depend on them.
    """

    kind: str
    method: str
    flops: float
    seed: int
    config: dict[str, Any]
    needs: "Unit | None" = None
    teacher: "Unit | None" = None
    places: dict[str, str] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """The name of the folder, with an id of kind, config and the unit that it needs."""
        needed = None if self.needs is None else self.needs.label.rpartition("-")[2]
        teacher = [] if self.teacher is None else [self.teacher.label.rpartition("-")[2]]
        text = json.dumps([self.kind, self.config, needed, *teacher], sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:10]
        return f"{self.kind}-{self.method}-{self.flops:.3g}-s{self.seed}-{digest}"

    def folder(self, work: Path) -> Path:
        return work / "units" / self.label

    def result(self, work: Path) -> dict[str, Any] | None:
        """The result, or None if it is missing."""
        path = work / "results" / f"{self.label}.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    def encoder(self, work: Path) -> Path:
        """The encoder that the unit makes or needs."""
        return (self if self.needs is None else self.needs).folder(work) / RUN / "encoder"

    @property
    def is_ours(self) -> bool:
        """Whether `kinemae pretrain` runs the unit."""
        return self.kind == PRETRAIN and self.config["method"] == OURS


class Interrupted(Exception):
    """The processes were told to stop."""


class Runner:
    """Runs units, each in a process of its own on one thread."""

    def __init__(self, work: Path):
        self.work = work
        self.running: set[subprocess.Popen[bytes]] = set()
        self.is_stopped = False

    def stop(self) -> None:
        """Stop all units. A pretraining saves a checkpoint first, and continues from it next time."""
        self.is_stopped = True
        for process in list(self.running):
            process.terminate()

    def run(self, unit: Unit) -> bool:
        """Run a unit unless it is finished or another process runs it; return whether it is finished.

        Raises:
            Interrupted: after `stop`.
            RuntimeError: the unit failed; the message names its log.
        """
        folder = unit.folder(self.work)
        folder.mkdir(parents=True, exist_ok=True)
        with _lock(folder / "unit.lock") as lock:
            if unit.result(self.work) is not None:
                return True
            if lock is not None:
                describe(unit, self.work)
                record(unit, self.work, self._run_process(unit, folder, lock))
            return lock is not None

    def _run_process(self, unit: Unit, folder: Path, lock: int) -> dict[str, Any]:
        """Run a unit's process, which inherits the lock, since it may outlive this one; return its cost."""
        if self.is_stopped:
            raise Interrupted
        first, begin = _steps_done(unit, folder), time.monotonic()
        with (folder / "log.txt").open("ab") as log:
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
            process = subprocess.Popen(
                command(unit, self.work), stdout=log, stderr=log, env=environment, pass_fds=[lock]
            )
            self.running.add(process)
            if self.is_stopped:  # in the meantime
                process.terminate()
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            self.running.discard(process)
        if self.is_stopped and process.returncode:
            raise Interrupted
        if process.returncode:
            raise RuntimeError(f"{unit.label}: exit code {process.returncode}; see {folder}/log.txt")
        cost = {
            "wall_s": round(time.monotonic() - begin, 1),
            "cpu_s": round(usage.ru_utime + usage.ru_stime, 1),
            "peak_gb": round(usage.ru_maxrss / (1 << 20), 2),
        }
        steps = unit.config.get("steps")
        if steps and first:  # the parts before an interruption were not measured
            scale = steps / (steps - first) if first < steps else 0.0
            cost |= {name: round(cost[name] * scale, 1) for name in ("wall_s", "cpu_s")}
            cost["measured_steps"] = steps - first
        return cost


def describe(unit: Unit, work: Path) -> Path:
    """Write the description of a unit for its process."""
    folder = unit.folder(work)
    places = {**unit.places, "folder": str(folder), "encoder": str(unit.encoder(work))}
    content = {"kind": unit.kind, "config": unit.config, "places": places}
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write_text(folder / "unit.json", json.dumps(content, indent=1) + "\n")
    return folder / "unit.json"


def record(unit: Unit, work: Path, cost: dict[str, Any]) -> None:
    """Write the result of a unit."""
    row = {"kind": unit.kind, "method": unit.method, "flops": unit.flops, "seed": unit.seed}
    result = {**row, "config": unit.config, "cost": cost, **_scores(unit, unit.folder(work))}
    (work / "results").mkdir(exist_ok=True)
    atomic_write_text(work / "results" / f"{unit.label}.json", json.dumps(result, indent=1) + "\n")


def command(unit: Unit, work: Path) -> list[str]:
    """The command of a unit's process."""
    folder, encoder = unit.folder(work), unit.encoder(work)
    if unit.is_ours:
        teacher = "" if unit.teacher is None else str(unit.teacher.encoder(work))
        given = [argument.replace(TEACHER, teacher) for argument in unit.config["arguments"]]
        given += [f"run_dir={folder / RUN}", f"data.shards={unit.places['shards']}"]
        return [sys.executable, "-m", "kinemae", "pretrain", unit.places["base"], *given]
    if unit.kind == TUNED:
        data = [f"data.{split}={unit.places['fold']}/{split}" for split in ("train", "validation")]
        given = [*unit.config["arguments"], *data, f"encoder={encoder}", f"run_dir={folder / RUN}"]
        return [sys.executable, "-m", "kinemae", "finetune", "train", "demo", *given]
    return [sys.executable, "-m", "tests.benchmarks.learning.execute", str(folder / "unit.json")]


def _scores(unit: Unit, folder: Path) -> dict[str, Any]:
    """The "scores" of a finished unit; nothing for a pretraining."""
    if unit.kind == TUNED:
        result = json.loads((folder / RUN / "result.json").read_text(encoding="utf-8"))
        return {"scores": {"fine-tuned": {"top1": [100 * result["top1"]]}}}
    path = folder / "scores.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _steps_done(unit: Unit, folder: Path) -> int:
    """Steps of an interrupted pretraining."""
    if unit.kind != PRETRAIN:
        return 0
    run = folder / RUN
    return max(list_checkpoints(run / "checkpoints"), default=0) if unit.is_ours else steps_done(run)


@contextmanager
def _lock(path: Path) -> Iterator[int | None]:
    """Hold a file lock; yield its descriptor, or None if another process holds it."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
            return
        yield file.fileno()
