"""Checkpoints that are complete or absent, written in the background, independent of ranks and ZeRO stages.

A save crosses three files: `checkpoint.py` (all processes together), `async_writer.py` (one process's part in
a thread) and `checkpoint_files.py` (the files). A load crosses `checkpoint_reader.py` and `resharding.py`.
A folder gets its final name only after all processes have reported that their bytes are on the disk. At a
start every byte is checked while it is loaded; a damaged checkpoint is skipped with an error in the log, and
renamed. An unreadable file does not count as damage.
"""

import json
import secrets
import threading
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from kinemae.data_tools.command import CheckpointError, Stuck, log
from kinemae.data_tools.files import atomic_write_text
from kinemae.pretrain.runtime import checkpoint_files as files
from kinemae.pretrain.runtime.async_writer import AsyncCheckpointWriter, PinnedBuffer, combine_failures
from kinemae.pretrain.runtime.checkpoint_files import CheckpointMetadata, FileChecksum, Place
from kinemae.pretrain.runtime.checkpoint_reader import CheckpointDamage, CheckpointReader
from kinemae.pretrain.runtime.checkpoint_storage import storage_of
from kinemae.pretrain.runtime.file_retries import run_on_first
from kinemae.pretrain.runtime.processes import Processes
from kinemae.pretrain.runtime.tensor_shards import (
    FillShards,
    ShardRange,
    ShardTable,
    TensorShard,
    coverage_sums,
    is_covered,
    pack_ranges,
    value_counts,
)

SAVED_STEPS = "saved_steps.json"
_MOST_NAMED = 3


@dataclass(frozen=True, kw_only=True)
class RunState:
    """The state of a run besides weights and optimizer.

    Attributes:
        step: steps done.
        clips: clips seen, skipped ones included.
        skipped_clips: clips whose video could not be read.
        skipped_steps: steps without an update because the gradient was not finite.
        skipped_in_row: the last of them, if they were the last steps.
        world: number of processes that wrote the checkpoint.
        zero_stage: ZeRO stage that wrote it.
        omitted: steps whose update the loss guard leaves out.
        rollbacks: number of rollbacks.
        recent: loss and gradient norm of the last applied steps, oldest first; empty without a loss guard.
        validations: the lines of `validation.jsonl`, oldest first.
        tars: the tars that are done, for data without an index; see `TarsDone.as_json`.
    """

    step: int = 0
    clips: int = 0
    skipped_clips: int = 0
    skipped_steps: int = 0
    skipped_in_row: list[int] = field(default_factory=list)
    world: int = 1
    zero_stage: int = 0
    omitted: list[int] = field(default_factory=list)
    rollbacks: int = 0
    recent: list[list[float]] = field(default_factory=list)
    validations: list[dict[str, Any]] = field(default_factory=list)
    tars: dict[str, Any] = field(default_factory=dict)


def _run_state(folder: Place, stored: dict[str, Any]) -> RunState:
    """The stored state; missing keys take their defaults, unknown keys are refused."""
    unknown = sorted(stored.keys() - {known.name for known in fields(RunState)})
    if unknown:
        raise CheckpointError(
            f"{folder}/state.json: expected the keys of this version, got {', '.join(unknown)} too; fix: "
            "continue the run with the version that wrote it, or a newer one"
        )
    return RunState(**stored)


class Checkpointable(Protocol):
    """The part of an engine that checkpoints use."""

    def shards(self) -> list[TensorShard]:
        """The shards that this process saves: over all processes each value of each kind once."""

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every saved parameter and buffer, the same on every process."""

    def updates(self) -> dict[str, int]:
        """Number of updates of each trainable parameter."""

    def load_shards(self, fill: FillShards, updates: dict[str, int]) -> None:
        """Collective. Fill the values that this process holds.

        `fill` fails on all processes if the checkpoint is damaged; the values are then of no use.
        """


class Checkpoints:
    """The checkpoints of one run folder. Every process must make the same calls.

    Args:
        save_to: prefix in S3 of the checkpoints; None for `RUN/checkpoints`.
        keep: number of newest checkpoints to keep.
        keep_every_steps: also keep checkpoints at multiples of this; 0 for none.
        keep_step: also keep the checkpoint of this step; None for none.
        background: whether training continues while a checkpoint is written. This needs host memory for a
            copy of the values that this process writes; it is reused.
    """

    def __init__(  # noqa: PLR0913 - keys of the config
        self,
        run_dir: Path,
        processes: Processes,
        *,
        save_to: str | None = None,
        keep: int = 2,
        keep_every_steps: int = 0,
        keep_step: int | None = None,
        background: bool = True,
    ):
        self._storage = storage_of(run_dir, save_to)
        self.folder = self._storage.place
        self._saved_steps = None if save_to is None else run_dir / SAVED_STEPS
        self._processes = processes
        self._keep = keep
        self._keep_every_steps = keep_every_steps
        self._keep_step = keep_step
        self._buffer = PinnedBuffer() if background else None
        self._writer: AsyncCheckpointWriter | None = None
        self._removal: threading.Thread | None = None
        self._metadata = CheckpointMetadata(state={}, shapes={}, updates={}, files={})
        self._loaded: int | None = None
        self.attempt: str | None = None
        self._saves = 0
        self._partial: Place = self.folder

    def save(self, engine: Checkpointable, state: RunState) -> None:
        """Begin a checkpoint of the current values; commit an unfinished one first.

        `commit` completes it. Without `background` it is committed on return.

        Raises:
            CheckpointError: see `commit`.
        """
        self.commit()
        if self.attempt is None:
            self.attempt = self._processes.broadcast_object(secrets.token_hex(4))
        self._metadata = CheckpointMetadata(
            state=asdict(state), shapes=engine.shapes(), updates=dict(engine.updates()), files={}
        )
        self._saves += 1
        self._partial = self._storage.begin(state.step, self.attempt, self._saves)
        file = self._partial / self._shard_file(self._processes.rank)
        self._writer = AsyncCheckpointWriter(self._storage, file, engine.shards(), self._buffer)
        if self._buffer is not None:
            self._writer.start()
        else:
            self._writer.run()
            self.commit()

    @property
    def is_saving(self) -> bool:
        """True if a save was begun and not committed yet, the same on every process."""
        return self._writer is not None

    def is_written(self) -> bool:
        """Check whether this process's part of an unfinished save is on the disk or has failed.

        False without an unfinished save: processes exchange the answer steps later, and a save that begins
        meanwhile would count as written.
        """
        return self._writer is not None and not self._writer.is_alive()

    def commit(self) -> None:
        """Collective. Wait for all parts, complete the checkpoint, and drop old ones.

        Without an unfinished save it only waits for the removal of old checkpoints.

        Raises:
            CheckpointError: on all processes, if any could not write its part, for example on a full disk;
                older checkpoints are intact.
            Stuck: the same, but another attempt may succeed.
        """
        if self._removal is not None:
            self._removal.join()
            self._removal = None
        if self._writer is None:
            return
        writer, self._writer = self._writer, None
        if writer.ident is not None:
            writer.join()
        processes, step = self._processes, self._metadata.state["step"]
        results = processes.gather_object(writer.result())
        try:
            if failure := processes.broadcast_object(combine_failures(results)):
                failure.throw()
            if fault := self._find_fault(writer.ranges):
                raise OSError(fault)
            checksums = [result.checksum for result in results if result.checksum]
            run_on_first(
                processes, f"writing the checkpoint of step {step}", partial(self._finish, checksums)
            )
        except (OSError, Stuck) as error:
            if processes.is_first:
                self._storage.discard(self._partial)
            kind = Stuck if isinstance(error, Stuck) else CheckpointError
            raise kind(
                f"could not write the checkpoint of step {step} to {self.folder} "
                f"({error}); older checkpoints are intact; fix: remove the cause and repeat the command"
            ) from error

    def _find_fault(self, ranges: list[ShardRange]) -> str | None:
        """Collective. Describe why the shards of all processes do not hold each value once; None if they do.

        Processes exchange one sum for each parameter; the ranges are gathered only if a sum is wrong.
        """
        metadata, processes = self._metadata, self._processes
        counts = value_counts(metadata.shapes, metadata.updates)
        sums = processes.all_reduce(coverage_sums(ranges, counts).to(processes.device))
        if is_covered(sums, counts, metadata.updates):
            return None
        file = self._shard_file(processes.rank)
        packed = pack_ranges(ranges, counts, file=file, number=processes.rank, files=processes.world)
        table = ShardTable(packed=processes.gather_object(packed), counts=counts)
        fault = table.find_fault(metadata.shapes, metadata.updates) if processes.is_first else None
        return processes.broadcast_object(fault or "the shards do not cover the model")

    def _finish(self, checksums: list[FileChecksum]) -> None:
        """Complete the checkpoint, on the first process, once all parts are on the disk."""
        written = {self._shard_file(rank): checksum for rank, checksum in enumerate(checksums)}
        step = self._metadata.state["step"]
        metadata = replace(self._metadata, files=written)
        # The loaded step may be saved again with more in its state.
        self._storage.commit(self._partial, step, metadata, replaces=step == self._loaded)
        steps = self._storage.complete()
        for later in [other for other in steps if other > step]:  # of another run, see `_set_aside`
            self._storage.quarantine(steps.pop(later))
        for old in list(steps)[: -self._keep]:
            is_multiple = self._keep_every_steps and old % self._keep_every_steps == 0
            if not is_multiple and old != self._keep_step:
                self._storage.drop(steps.pop(old))
        if self._saved_steps is not None:
            atomic_write_text(self._saved_steps, json.dumps(list(steps)))
        # In a thread, since large files take a while; the process does not end before it.
        self._removal = threading.Thread(
            name="removal", target=self._storage.remove_dropped, args=(self.attempt, self._partial)
        )
        self._removal.start()

    def _shard_file(self, rank: int) -> str:
        return files.shard_file(rank, self._processes.world)

    def load_newest(self, engine: Checkpointable, *, before: int | None = None) -> RunState:
        """Collective. Load the newest intact checkpoint, or return the initial state if there is none.

        Damaged newer checkpoints are renamed after an older one is loaded.

        Args:
            before: for a rollback: load the newest of this step or an earlier one. Later ones are dropped.

        Raises:
            CheckpointError: all checkpoints are damaged, or they are of another model or format.
            Stuck: a process cannot read a file that may be intact.
        """
        self.commit()
        try:
            steps = run_on_first(
                self._processes, f"reading the folder {self.folder}", partial(self._candidates, before)
            )
            state, damaged = self._load_first_intact(engine, steps)
            if state is not None:
                set_aside = partial(self._set_aside, list(steps)[: len(damaged)], before)
                run_on_first(self._processes, "renaming checkpoints", set_aside)
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
                f"{self.folder}: expected a checkpoint of step {before} or earlier, got none; fix: "
                "repeat the command"
            )
        return RunState()

    def _candidates(self, before: int | None) -> dict[int, str]:
        """Names of the checkpoints by step, newest first."""
        self._storage.remove_leftovers()
        steps = self._storage.complete()
        return {step: steps[step].name for step in reversed(steps) if before is None or step <= before}

    def _load_first_intact(
        self, engine: Checkpointable, steps: dict[int, str]
    ) -> tuple[RunState | None, list[str]]:
        """Load the first intact checkpoint of `steps`; also return the damage of those before it."""
        damaged: list[str] = []
        for step, name in steps.items():
            folder = self.folder / name
            try:
                reader = CheckpointReader(self._storage, folder, self._processes)
                files.check_shapes(folder, reader.metadata.shapes, engine.shapes())
                engine.load_shards(reader.fill, reader.metadata.updates)
            except CheckpointDamage as damage:
                damaged.append(f"step {step}: {damage}")
                if self._processes.is_first:
                    log.error("checkpoint %s is damaged (%s); trying the previous one", folder, damage)
                continue
            self._loaded = step
            return _run_state(folder, reader.metadata.state), damaged
        return None, damaged

    def _set_aside(self, damaged: list[int], before: int | None) -> None:
        """Rename checkpoints newer than the loaded one, so that no start uses them again."""
        for step, path in self._storage.complete().items():
            if step in damaged:
                self._storage.quarantine(path)
            elif before is not None and step > before:
                self._storage.drop(path)
