"""Checkpoints that are complete or absent.

    RUN/checkpoints/
      step-00001000/deepspeed/...   weights and optimiser state, DeepSpeed's files
      step-00001000/state.json      the little that is not a function of the step
      step-00001000/manifest.json   size and checksum of every file; written last
      step-00002000.partial/        a save that never ended; removed by the next one

A folder bears its final name only after every byte is on the disk. On resume the manifest is checked, and a
damaged checkpoint is passed over loudly for the one before it.
"""

import json
import os
import shutil
import zlib
from dataclasses import asdict, dataclass, field
from pathlib import Path

from data_tools.command import CheckpointError, log
from pretrain.runtime.engine import Engine
from pretrain.runtime.processes import Processes

_BLOCK = 1 << 20


@dataclass(frozen=True, kw_only=True)
class RunState:
    """What a run must remember besides weights and optimiser.

    Attributes:
        step: steps done.
        clips: clips seen, skipped ones included.
        skipped_clips: clips whose video could not be read.
        skipped_steps: updates left out because a gradient was not finite.
        world: processes that wrote the checkpoint.
        zero_stage: the ZeRO stage that wrote it.
        omitted: steps whose update is left out, by the guard.
        rollbacks: how often the guard went back.
        recent: loss and gradient norm of the last applied steps, oldest first, where there is a guard.
    """

    step: int = 0
    clips: int = 0
    skipped_clips: int = 0
    skipped_steps: int = 0
    world: int = 1
    zero_stage: int = 0
    omitted: list[int] = field(default_factory=list)
    rollbacks: int = 0
    recent: list[list[float]] = field(default_factory=list)


class Checkpoints:
    """The checkpoints of one run folder. Every process must call `save` and `load`."""

    def __init__(self, run_dir: Path, processes: Processes, keep: int):
        self.folder = run_dir / "checkpoints"
        self._processes = processes
        self._keep = keep

    def save(self, engine: Engine, state: RunState) -> None:
        """Write a checkpoint, commit it, and drop the oldest beyond those to keep.

        Raises:
            CheckpointError: it could not be written, for example on a full disk; older ones are intact.
        """
        final = self.folder / f"step-{state.step:08d}"
        partial = final.with_suffix(".partial")
        try:
            if self._processes.is_first:
                self._remove_partial_saves()
                partial.mkdir(parents=True)
            self._processes.wait_for_all()
            engine.save(partial)
            self._processes.wait_for_all()
            if self._processes.is_first:
                _commit(partial, final, state)
                self._remove_old()
            self._processes.wait_for_all()
        except OSError as error:
            raise CheckpointError(
                f"could not write the checkpoint of step {state.step} to {self.folder} ({error}); "
                "older checkpoints are intact: mend the disk and repeat the command"
            ) from error

    def is_written(self) -> bool:
        """Whether this process's part of a save is on the disk, or nothing is being written."""
        return True

    def commit(self) -> None:
        """Finish a save that is under way; every process must call it."""

    def load_newest(self, engine: Engine, *, zero_stage: int, before: int | None = None) -> RunState:
        """Load the newest sound checkpoint, or return the start of a run where there is none.

        Raises:
            CheckpointError: there are checkpoints and none is sound, or it needs another number of processes.
        """
        name = self._processes.from_first(self._newest_sound(before) if self._processes.is_first else None)
        if name is None:
            return RunState()
        folder = self.folder / name
        state = RunState(**json.loads((folder / "state.json").read_text()))
        _check_topology(folder, state, self._processes.world, zero_stage)
        engine.load(folder)
        return state

    def _newest_sound(self, before: int | None) -> str | None:
        found = sorted(
            (path for path in self.folder.glob("step-*") if path.suffix != ".partial"), reverse=True
        )
        if before is not None:
            found = [path for path in found if int(path.name.removeprefix("step-")) <= before]
        for path in found:
            damage = _find_damage(path)
            if damage is None:
                return path.name
            log.error("checkpoint %s is damaged (%s); trying the one before it", path, damage)
        if found:
            raise CheckpointError(
                f"all {len(found)} checkpoints in {self.folder} are damaged; remove the folder to start again"
            )
        return None

    def _remove_partial_saves(self) -> None:
        for path in self.folder.glob("*.partial"):
            shutil.rmtree(path)

    def _remove_old(self) -> None:
        found = sorted(path for path in self.folder.glob("step-*") if path.suffix != ".partial")
        for path in found[: -self._keep]:
            shutil.rmtree(path)


def _commit(partial: Path, final: Path, state: RunState) -> None:
    (partial / "state.json").write_text(json.dumps(asdict(state), indent=1))
    files = {str(path.relative_to(partial)): _describe(path) for path in _files(partial)}
    (partial / "manifest.json").write_text(json.dumps({"format": 1, "files": files}, indent=1))
    for path in [*_files(partial), *(path for path in partial.rglob("*") if path.is_dir()), partial]:
        _to_disk(path)
    if final.exists():  # a resumed run reached the same step again after this one was found damaged
        shutil.rmtree(final)
    partial.rename(final)
    _to_disk(final.parent)


def _find_damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint, or None. Reads every byte once."""
    try:
        files = json.loads((folder / "manifest.json").read_text())["files"]
        for name, expected in files.items():
            if _describe(folder / name) != expected:
                return f"{name} has changed since it was written"
    except (OSError, ValueError, KeyError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def _check_topology(folder: Path, state: RunState, world: int, zero_stage: int) -> None:
    if state.zero_stage != zero_stage:
        raise CheckpointError(
            f"{folder} was written with engine.zero_stage={state.zero_stage} and cannot be continued with "
            f"{zero_stage}: set engine.zero_stage={state.zero_stage}"
        )
    if state.world != world and zero_stage > 0:
        raise CheckpointError(
            f"{folder} was written by {state.world} processes at ZeRO stage {zero_stage}, not to be resumed "
            f"by {world}: start {state.world} processes (a run at ZeRO stage 0 may change their number)"
        )


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _describe(path: Path) -> dict[str, int]:
    checksum = 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            checksum = zlib.crc32(block, checksum)
    return {"bytes": path.stat().st_size, "crc32": checksum}


def _to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
