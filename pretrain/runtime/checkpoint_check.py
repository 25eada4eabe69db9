"""Verify a checkpoint before loading: all processes read it together and agree on one result.

Damage is a wrong size, checksum or format, or a file that no process finds. If one process cannot read a
file, or only some processes find it, the checkpoint may be intact: the start ends and can be repeated.
"""

import platform
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

from kinemae.data_tools.command import Stuck
from kinemae.pretrain.runtime import checkpoint_files
from kinemae.pretrain.runtime.checkpoint_files import Notes
from kinemae.pretrain.runtime.file_retries import attempts, retried
from kinemae.pretrain.runtime.processes import Processes
from kinemae.pretrain.runtime.shard_files import PieceStore
from kinemae.pretrain.runtime.span_table import PackedSpans, SpanTable, counts_of, pack


@dataclass(frozen=True, kw_only=True)
class Sound:
    """A checkpoint after all its bytes were checked."""

    notes: Notes
    store: PieceStore


class _Found(NamedTuple):
    """The result of one process for its share of the files."""

    host: str
    packed: list[PackedSpans]
    damage: str | None = None
    unread: str | None = None
    absent: str | None = None


def check_checkpoint(folder: Path, processes: Processes) -> Sound | str:
    """Collective. Read every byte, each process its share of the files.

    Returns:
        The checkpoint, or a description of its damage; the same on every process.

    Raises:
        CheckpointError: the checkpoint has another format.
        Stuck: a process cannot read a file. The message states the file and the host.
    """
    notes, own = _check_share(folder, processes)
    found = processes.gather(own)
    for rank, other in enumerate(found):
        if other.unread is not None:
            raise Stuck(unread(folder, rank, other.host, other.unread))
    absent = sorted({other.absent for other in found if other.absent})
    if absent:
        _refuse_partly_absent(folder, absent[0], processes)
        return f"{absent[0]} is missing"
    damage = next((other.damage for other in found if other.damage), None)
    if notes is None or damage is not None:
        return damage or "its manifest cannot be read"
    packed = [file for other in found for file in other.packed]
    table = SpanTable(packed=packed, counts=counts_of(notes.shapes, notes.updates))
    fault = table.find_fault(notes.shapes, notes.updates)
    return fault or Sound(notes=notes, store=PieceStore(folder, table))


def _check_share(folder: Path, processes: Processes) -> tuple[Notes | None, _Found]:
    found, notes = _Found(platform.node(), []), None
    try:
        notes = retried(partial(checkpoint_files.read_notes, folder), f"reading {folder}")
        counts = counts_of(notes.shapes, notes.updates)
        for name in sorted(notes.files)[processes.rank :: processes.world]:
            check = partial(checkpoint_files.check_file, folder, name, notes.files[name])
            spans = retried(check, f"reading {folder / name}")
            if checkpoint_files.is_pieces(name):
                number, files = checkpoint_files.number_of(name)
                found.packed.append(pack(spans, counts, file=name, number=number, files=files))
    except FileNotFoundError as error:
        found = found._replace(absent=Path(error.filename).name)
    except OSError as error:
        found = found._replace(unread=str(error))
    except (ValueError, KeyError) as error:
        found = found._replace(damage=str(error))
    return notes, found


def _refuse_partly_absent(folder: Path, name: str, processes: Processes) -> None:
    """End the start where some processes find a file and others do not."""
    seen = processes.gather((platform.node(), checkpoint_files.is_listed(folder, name)))
    if any(is_there for _, is_there in seen):
        rank, host = next(
            ((rank, host) for rank, (host, is_there) in enumerate(seen) if not is_there), (0, "")
        )
        raise Stuck(unread(folder, rank, host or "its host", f"no {name}, which other processes find"))


def unread(folder: Path, rank: int, host: str, why: str) -> str:
    """The message for a checkpoint that one process cannot read."""
    return (
        f"checkpoint {folder}: expected rank {rank} on {host} to read it, got {why} ({attempts()}); nothing "
        "was changed; fix: check the file system and its mount on that host, then repeat the command"
    )
