"""Checkpoints that are complete or absent, written while training goes on, free of the topology.

The layout is in `checkpoint_files.py`. A folder bears its final name only after all processes have said that
their bytes are on the disk. On resume every byte is checked (`checkpoint_check.py`); a damaged checkpoint is
skipped with an error in the log, and renamed. An unreadable file does not count as damage.
"""

import platform
import secrets
import shutil
import threading
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from kinemae.data_tools.command import CheckpointError, Stuck, log
from kinemae.pretrain.runtime import checkpoint_files
from kinemae.pretrain.runtime.async_writer import HostCopy, Saving, failure_among
from kinemae.pretrain.runtime.checkpoint_check import Sound, check_checkpoint, unread
from kinemae.pretrain.runtime.checkpoint_files import Notes
from kinemae.pretrain.runtime.file_retries import on_first
from kinemae.pretrain.runtime.processes import Processes
from kinemae.pretrain.runtime.shard_files import FileMark
from kinemae.pretrain.runtime.span_table import Span, SpanTable, are_tiled, counts_of, pack, tiles
from kinemae.pretrain.runtime.state_shards import Piece, ReadPiece

_MOST_NAMED = 3


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


def _run_state(folder: Path, stored: dict[str, Any]) -> RunState:
    """The state of a checkpoint of this or an earlier version; missing keys take their defaults.

    Raises:
        CheckpointError: it holds an unknown key, so a later version wrote it.
    """
    unknown = sorted(stored.keys() - {known.name for known in fields(RunState)})
    if unknown:
        raise CheckpointError(
            f"{folder}/state.json: expected the keys of this version, got {', '.join(unknown)} too; fix: "
            "continue the run with the version that wrote it, or a newer one"
        )
    return RunState(**stored)


class HasPieces(Protocol):
    """What a checkpoint asks of an engine."""

    def pieces(self) -> list[Piece]:
        """What this process is to save: over all processes each value of each kind once."""

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every parameter and buffer that the pieces are of, the same on every process."""

    def updates(self) -> dict[str, int]:
        """How often each trainable parameter was updated."""

    def load_pieces(self, read: ReadPiece, updates: dict[str, int]) -> None:
        """Ask for the values that this process holds, and take them over."""


class Checkpoints:
    """The checkpoints of one run folder. Every process must make the same calls.

    Args:
        keep: how many of the newest stay.
        keep_every_steps: those of its multiples stay too; 0 for none.
        background: whether training goes on while a checkpoint is written. It costs one copy, in host memory,
            of what each process writes, which is kept for the next save.
    """

    def __init__(
        self,
        run_dir: Path,
        processes: Processes,
        *,
        keep: int = 2,
        keep_every_steps: int = 0,
        background: bool = True,
    ):
        self.folder = run_dir / "checkpoints"
        self._processes = processes
        self._keep = keep
        self._keep_every_steps = keep_every_steps
        self._copy = HostCopy() if background else None
        self._saving: Saving | None = None
        self._removal: threading.Thread | None = None
        self._notes = Notes(state={}, shapes={}, updates={}, files={})
        self.attempt: str | None = None

    def save(self, engine: HasPieces, state: RunState) -> None:
        """Begin a checkpoint of this moment; `commit` ends it. One still under way is committed first.

        Without `background` it is committed on return.

        Raises:
            CheckpointError: as of `commit`.
        """
        self.commit()
        if self.attempt is None:
            self.attempt = self._processes.from_first(secrets.token_hex(4))
        self._notes = Notes(
            state=asdict(state), shapes=engine.shapes(), updates=dict(engine.updates()), files={}
        )
        path = self._partial() / self._file_of(self._processes.rank)
        self._saving = Saving(path, engine.pieces(), self._copy)
        if self._copy is not None:
            self._saving.start()
        else:
            self._saving.run()
            self.commit()

    @property
    def is_under_way(self) -> bool:
        """Whether a save was begun and not committed yet, the same on every process."""
        return self._saving is not None

    def is_written(self) -> bool:
        """Whether this process's part is on the disk, or has failed; true where no save is under way."""
        return self._saving is None or not self._saving.is_alive()

    def commit(self) -> None:
        """Wait for all parts, make them a checkpoint, and drop those not to be kept.

        Where no save is under way, only the removal of the old ones is waited for.

        Raises:
            CheckpointError: on all processes, where any could not write its part, for example on a full disk;
                older checkpoints are intact.
            Stuck: the same, but a retry may succeed.
        """
        self._end_removal()
        if self._saving is None:
            return
        saving, self._saving = self._saving, None
        if saving.ident is not None:
            saving.join()
        notes, processes = self._notes, self._processes
        step = notes.state["step"]
        parts = processes.gather_to_first(saving.part())
        what = f"writing the checkpoint of step {step}"
        try:
            if failure := processes.from_first(failure_among(parts)):
                failure.throw()
            if fault := self._find_fault(saving.spans):  # the engine's pieces do not cover the model
                raise OSError(fault)
            on_first(processes, what, lambda: self._finish([part.mark for part in parts if part.mark]))
        except (OSError, Stuck) as error:
            if processes.is_first:
                shutil.rmtree(self._partial(), ignore_errors=True)
            kind = Stuck if isinstance(error, Stuck) else CheckpointError
            raise kind(
                f"could not write the checkpoint of step {step} to {self.folder} "
                f"({error}); older checkpoints are intact; fix: remove the cause and repeat the command"
            ) from error

    def load_newest(self, engine: HasPieces, *, before: int | None = None) -> RunState:
        """Load the newest sound checkpoint, or return the start of a run where there is none.

        Damaged newer checkpoints are renamed after an older one is loaded.

        Args:
            before: go back: to the newest of those of this step or an earlier one. Later ones are dropped.

        Raises:
            CheckpointError: there are checkpoints and none is sound, or they are of another model or format;
                there is none to go back to; the folder cannot be used.
            Stuck: a process cannot read a file that may be intact.
        """
        self.commit()
        what = f"reading the folder {self.folder}"
        try:
            steps = on_first(self._processes, what, lambda: self._candidates(before))
            state, damaged = self._load_first_sound(engine, steps)
            if state is not None:
                leave = partial(self._leave_behind, steps[: len(damaged)], before)
                on_first(self._processes, "setting checkpoints aside", leave)
                return state
        except OSError as error:
            raise CheckpointError(f"cannot use the checkpoints in {self.folder}: {error}") from error
        if damaged:
            raise CheckpointError(
                f"all {len(steps)} checkpoints in {self.folder} are damaged "
                f"({'; '.join(damaged[:_MOST_NAMED])}); fix: restore one of them from a copy, or rename the "
                "folder to start again from step 0; keep it, since parts of it may still be readable"
            )
        if before is not None:
            raise CheckpointError(
                f"{self.folder} holds no checkpoint of step {before} or before to go back to"
            )
        return RunState()

    def _load_first_sound(self, engine: HasPieces, steps: list[int]) -> tuple[RunState | None, list[str]]:
        """Load the first intact checkpoint of `steps`; return the damaged ones before it."""
        damaged: list[str] = []
        for step in steps:
            folder = checkpoint_files.final_folder(self.folder, step)
            found = check_checkpoint(folder, self._processes)
            if isinstance(found, Sound):
                return self._take(engine, folder, found), damaged
            damaged.append(f"step {step}: {found}")
            if self._processes.is_first:
                log.error("checkpoint %s is damaged (%s); trying the one before it", folder, found)
        return None, damaged

    def _candidates(self, before: int | None) -> list[int]:
        checkpoint_files.remove_leftovers(self.folder)
        steps = checkpoint_files.complete(self.folder)
        return [step for step in reversed(steps) if before is None or step <= before]

    def _take(self, engine: HasPieces, folder: Path, found: Sound) -> RunState:
        checkpoint_files.refuse_another_model(folder, found.notes.shapes, engine.shapes())
        try:
            engine.load_pieces(found.store.read, found.notes.updates)
        except OSError as error:
            raise Stuck(unread(folder, self._processes.rank, platform.node(), str(error))) from error
        return _run_state(folder, found.notes.state)

    def _leave_behind(self, damaged: list[int], before: int | None) -> None:
        """Rename checkpoints newer than the loaded one, so that no start uses them again."""
        for step, path in checkpoint_files.complete(self.folder).items():
            if step in damaged:
                checkpoint_files.quarantine(path)
            elif before is not None and step > before:
                checkpoint_files.drop(path)

    def _find_fault(self, spans: list[Span]) -> str | None:
        """Collective. The reason why the pieces of all processes do not hold each value once, or None.

        Processes exchange one sum for each parameter; the runs are gathered only if a sum is wrong.
        """
        notes, processes = self._notes, self._processes
        counts = counts_of(notes.shapes, notes.updates)
        sums = processes.sum(tiles(spans, counts).to(processes.device))
        if are_tiled(sums, counts, notes.updates):
            return None
        file = self._file_of(processes.rank)
        packed = pack(spans, counts, file=file, number=processes.rank, files=processes.world)
        everything = processes.gather_to_first(packed)
        table = SpanTable(packed=everything, counts=counts)
        fault = table.find_fault(notes.shapes, notes.updates) if processes.is_first else None
        return processes.from_first(fault or "the pieces do not make up the model")

    def _finish(self, marks: list[FileMark]) -> None:
        """Only on the first process: all parts are on the disk."""
        files = {self._file_of(rank): mark for rank, mark in enumerate(marks)}
        step = self._notes.state["step"]
        final = checkpoint_files.final_folder(self.folder, step)
        checkpoint_files.commit(self._partial(), final, replace(self._notes, files=files))
        steps = checkpoint_files.complete(self.folder)
        for later in [other for other in steps if other > step]:  # not part of this run: see `_leave_behind`
            checkpoint_files.quarantine(steps.pop(later))
        for old in list(steps)[: -self._keep]:
            if not self._keep_every_steps or old % self._keep_every_steps:
                checkpoint_files.drop(steps[old])
        # In a thread, since files of gigabytes take a while; the process does not end before it.
        self._removal = threading.Thread(
            name="removal", target=checkpoint_files.sweep, args=(self.folder, self.attempt)
        )
        self._removal.start()

    def _end_removal(self) -> None:
        if self._removal is not None:
            self._removal.join()
            self._removal = None

    def _file_of(self, rank: int) -> str:
        return checkpoint_files.pieces_file(rank, self._processes.world)

    def _partial(self) -> Path:
        return checkpoint_files.partial_folder(self.folder, self._notes.state["step"], self.attempt or "")
