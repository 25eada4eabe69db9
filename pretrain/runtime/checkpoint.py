"""Checkpoints that are complete or absent, written while training goes on, free of the topology.

The layout is in `checkpoint_files.py`. A folder bears its final name only after all processes have said that
their bytes are on the disk. On resume every byte is checked; a damaged checkpoint is passed over loudly for
the one before it.
"""

import shutil
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar, cast

from data_tools.command import CheckpointError, log
from pretrain.runtime import checkpoint_files
from pretrain.runtime.checkpoint_files import Notes
from pretrain.runtime.piece_files import FileMark, PieceStore, Span
from pretrain.runtime.pieces import Piece, ReadPiece
from pretrain.runtime.processes import Processes
from pretrain.runtime.saving import HostCopy, Saving

_MOST_NAMED = 3

Value = TypeVar("Value")


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


class _Part(NamedTuple):
    """What one process has to say of its part of a save, or of its share of a check."""

    spans: list[Span]
    failure: str | None
    mark: FileMark | None = None


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

    def save(self, engine: HasPieces, state: RunState) -> None:
        """Begin a checkpoint of this moment; `commit` ends it. One still under way is committed first.

        Without `background` it is committed on return.

        Raises:
            CheckpointError: as of `commit`.
        """
        self.commit()
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
        """
        self._end_removal()
        if self._saving is None:
            return
        saving, self._saving = self._saving, None
        if saving.ident is not None:
            saving.join()
        parts = self._processes.gather(_Part(saving.spans, saving.failure, saving.mark))
        failures = [
            f"rank {rank}: {part.failure or 'the writing thread broke off'}"
            for rank, part in enumerate(parts)
            if part.mark is None
        ]
        try:
            if failures:
                raise OSError("; ".join(failures[:_MOST_NAMED]))
            self._on_first(lambda: self._finish(parts))
        except OSError as error:
            if self._processes.is_first:
                shutil.rmtree(self._partial(), ignore_errors=True)
            raise CheckpointError(
                f"could not write the checkpoint of step {self._notes.state['step']} to {self.folder} "
                f"({error}); older checkpoints are intact: mend that and repeat the command"
            ) from error

    def load_newest(self, engine: HasPieces, *, before: int | None = None) -> RunState:
        """Load the newest sound checkpoint, or return the start of a run where there is none.

        Args:
            before: go back: to the newest of those of this step or an earlier one. Later ones are dropped.

        Raises:
            CheckpointError: there are checkpoints and none is sound, or they are of another model or format;
                there is none to go back to; the folder cannot be read.
        """
        self.commit()
        try:
            steps = self._on_first(lambda: self._candidates(before))
            for step in steps:
                state = self._load(engine, checkpoint_files.final_folder(self.folder, step))
                if state is not None:
                    if before is not None:
                        self._on_first(lambda: self._drop_after(before))
                    return state
        except OSError as error:
            raise CheckpointError(f"cannot use the checkpoints in {self.folder}: {error}") from error
        if steps:
            raise CheckpointError(
                f"all {len(steps)} checkpoints in {self.folder} are damaged; remove the folder to start again"
            )
        if before is not None:
            raise CheckpointError(
                f"{self.folder} holds no checkpoint of step {before} or before to go back to"
            )
        return RunState()

    def _candidates(self, before: int | None) -> list[int]:
        checkpoint_files.remove_leftovers(self.folder)
        steps = checkpoint_files.complete(self.folder)
        return [step for step in reversed(steps) if before is None or step <= before]

    def _load(self, engine: HasPieces, folder: Path) -> RunState | None:
        """Load one checkpoint, or say why not: it is damaged."""
        store, notes, damage = self._examine(folder)
        if store is None or notes is None:
            if self._processes.is_first:
                log.error("checkpoint %s is damaged (%s); trying the one before it", folder, damage)
            return None
        checkpoint_files.refuse_another_model(folder, notes.shapes, engine.shapes())
        engine.load_pieces(store.read, notes.updates)
        return RunState(**notes.state)

    def _examine(self, folder: Path) -> tuple[PieceStore | None, Notes | None, str | None]:
        """Read every byte of a checkpoint, each process its share of the files; all come to one verdict."""
        notes, spans, failure = None, [], None
        try:
            notes = checkpoint_files.read_notes(folder)
            share = sorted(notes.files)[self._processes.rank :: self._processes.world]
            spans = checkpoint_files.check_files(folder, {name: notes.files[name] for name in share})
        except ValueError as error:
            failure = str(error)
        parts = self._processes.gather(_Part(spans, failure))
        failure = next((part.failure for part in parts if part.failure), None)
        if notes is None or failure:
            return None, None, failure
        store = PieceStore(folder, (span for part in parts for span in part.spans))
        failure = store.find_fault(notes.shapes, notes.updates)
        return (None if failure else store), notes, failure

    def _finish(self, parts: list[_Part]) -> None:
        """Only on the first process: all parts are on the disk."""
        files = {self._file_of(rank): part.mark for rank, part in enumerate(parts) if part.mark}
        notes = replace(self._notes, files=files)
        spans = (span for part in parts for span in part.spans)
        fault = PieceStore(self._partial(), spans).find_fault(notes.shapes, notes.updates)
        if fault is not None:  # the engine's pieces do not make up the model
            raise OSError(fault)
        step = notes.state["step"]
        checkpoint_files.commit(self._partial(), checkpoint_files.final_folder(self.folder, step), notes)
        self._drop_after(step)  # of a line of steps that was given up, or damaged and passed over
        steps = checkpoint_files.complete(self.folder)
        for old in list(steps)[: -self._keep]:
            if not self._keep_every_steps or old % self._keep_every_steps:
                checkpoint_files.drop(steps[old])
        # In a thread, since files of gigabytes take a while; the process does not end before it.
        self._removal = threading.Thread(
            name="removal", target=checkpoint_files.remove_dropped, args=(self.folder,)
        )
        self._removal.start()

    def _drop_after(self, step: int) -> None:
        for other, path in checkpoint_files.complete(self.folder).items():
            if other > step:
                checkpoint_files.drop(path)

    def _end_removal(self) -> None:
        if self._removal is not None:
            self._removal.join()
            self._removal = None

    def _file_of(self, rank: int) -> str:
        return checkpoint_files.pieces_file(rank, self._processes.world)

    def _partial(self) -> Path:
        return checkpoint_files.partial_folder(self.folder, self._notes.state["step"])

    def _on_first(self, act: Callable[[], Value]) -> Value:
        """Let the first process act on the disk.

        Returns:
            What it got, on every process.

        Raises:
            OSError: it could not, on every process.
        """
        done: tuple[Value | None, str | None] = (None, None)
        if self._processes.is_first:
            try:
                done = (act(), None)
            except OSError as error:
                done = (None, str(error))
        result, failure = self._processes.from_first(done)
        if failure is not None:
            raise OSError(failure)
        return cast(Value, result)
