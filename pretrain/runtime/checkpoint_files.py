"""A checkpoint as a folder: what stands in it, when it counts, and whether it is sound.

step-00001000/pieces-00000-of-00004.safetensors    weights and moments, one file a writing process
step-00001000/parameters.json    shape and number of updates of every parameter
step-00001000/state.json         the little that is not a function of the step
step-00001000/manifest.json      size and checksum of every file; written last
step-00002000.ATTEMPT.partial/   a save under way, or one that never ended
step-00000500.dropped/           about to be removed
step-00003000.quarantined/       damaged and skipped at a start; kept for the user, never removed
"""

import errno
import json
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kinemae.data_tools.command import CheckpointError, log
from kinemae.pretrain.runtime.shard_files import FileMark, mark_of, read_spans
from kinemae.pretrain.runtime.span_table import Span

FORMAT = 2

_MOST_NAMED = 5
_PARTIAL, _DROPPED, _QUARANTINED, _PIECES = ".partial", ".dropped", ".quarantined", "pieces-"
_MANIFEST, _STATE, _PARAMETERS = "manifest.json", "state.json", "parameters.json"


@dataclass(frozen=True, kw_only=True)
class Notes:
    """What a checkpoint says in words, besides its pieces.

    Attributes:
        state: the run's, see `RunState`.
        shapes: of every parameter and buffer.
        updates: of every trainable parameter.
        files: every file but the manifest, as it was written.
    """

    state: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]
    updates: dict[str, int]
    files: dict[str, FileMark]


def final_folder(checkpoints: Path, step: int) -> Path:
    """Where the checkpoint of a step stands once it is complete."""
    return checkpoints / f"step-{step:08d}"


def partial_folder(checkpoints: Path, step: int, attempt: str) -> Path:
    """The folder in which a save is written.

    Args:
        attempt: identifies the start of the run. A process of an earlier, abandoned start may run again and
            must not write into the files of this one.
    """
    return checkpoints / f"step-{step:08d}.{attempt}{_PARTIAL}"


def pieces_file(rank: int, world: int) -> str:
    """The name of one process's file."""
    return f"{_PIECES}{rank:05d}-of-{world:05d}.safetensors"


def is_pieces(name: str) -> bool:
    """Whether a file name is that of a piece file."""
    return name.startswith(_PIECES)


def number_of(pieces: str) -> tuple[int, int]:
    """Parse the name of a piece file: its rank and the number of files."""
    number, _, files = pieces.removeprefix(_PIECES).removesuffix(".safetensors").partition("-of-")
    return int(number), int(files)


def complete(checkpoints: Path) -> dict[int, Path]:
    """Checkpoints with their final name, by step, oldest first. They may be damaged.

    Raises:
        OSError: the folder exists but cannot be read.
    """
    found = {}
    for path in _entries(checkpoints):
        number = path.name.removeprefix("step-")
        if path.name.startswith("step-") and number.isdigit():
            found[int(number)] = path
    return dict(sorted(found.items()))


def _entries(checkpoints: Path, *endings: str) -> list[Path]:
    """List the folder. `glob` is not used, because it treats an unreadable folder as empty."""
    try:
        names = os.listdir(checkpoints)
    except FileNotFoundError:
        return []
    return [checkpoints / name for name in sorted(names) if not endings or name.endswith(endings)]


def remove_leftovers(checkpoints: Path) -> None:
    """Sweep up saves that never ended, and removals.

    Raises:
        OSError: they cannot be removed.
    """
    for path in _entries(checkpoints, _PARTIAL, _DROPPED):
        with suppress(FileNotFoundError):  # removed by another process meanwhile
            shutil.rmtree(path)


def quarantine(checkpoint: Path) -> Path:
    """Rename a checkpoint so that no start loads it; nothing removes it.

    Returns:
        Its new path.

    Raises:
        OSError: it cannot be renamed.
    """
    place, count = checkpoint.with_name(f"{checkpoint.name}{_QUARANTINED}"), 1
    while place.exists():
        count += 1
        place = checkpoint.with_name(f"{checkpoint.name}.{count}{_QUARANTINED}")
    checkpoint.rename(place)
    log.warning("%s is kept as %s: remove it when it is no longer needed", checkpoint.name, place)
    return place


def drop(checkpoint: Path) -> None:
    """Invalidate a checkpoint atomically by a rename; `sweep` deletes the files.

    Raises:
        OSError: it cannot be renamed.
    """
    dropped = checkpoint.with_name(f"{checkpoint.name}{_DROPPED}")
    shutil.rmtree(dropped, ignore_errors=True)  # of the same step, if it came twice
    checkpoint.rename(dropped)


def sweep(checkpoints: Path, attempt: str) -> None:
    """Remove dropped checkpoints and saves of other attempts; log a warning on failure."""
    try:
        for path in _entries(checkpoints, _DROPPED, _PARTIAL):
            if not path.name.endswith(f".{attempt}{_PARTIAL}"):
                shutil.rmtree(path)
    except OSError as error:
        log.warning("could not remove what is left of old checkpoints in %s: %s", checkpoints, error)


def commit(partial: Path, final: Path, notes: Notes) -> None:
    """Make a folder whose pieces are on the disk a checkpoint: from here on it counts, or it never was.

    Raises:
        OSError: it could not be written.
    """
    if not partial.exists() and _holds(final, notes):  # an attempt failed after the rename
        _to_disk(final.parent)
        return
    parameters = {
        name: {"shape": list(shape), "updates": notes.updates.get(name)}
        for name, shape in notes.shapes.items()
    }
    for name, mark in notes.files.items():
        if (partial / name).stat().st_size != mark.size:
            raise OSError(errno.EIO, f"expected {mark.size} bytes", str(partial / name))
    files = dict(notes.files)
    for name, content in ((_STATE, notes.state), (_PARAMETERS, parameters)):
        _write_json(partial / name, content)
        files[name] = mark_of(partial / name)
    head = {"format": FORMAT, **{key: notes.state[key] for key in ("step", "world", "zero_stage")}}
    marks = {name: {"bytes": mark.size, "crc32": mark.crc32} for name, mark in sorted(files.items())}
    _write_json(partial / _MANIFEST, {**head, "files": marks})
    _to_disk(partial)
    if final.exists():  # not from this run: its loaded and dropped checkpoints have other names
        quarantine(final)
    partial.rename(final)
    _to_disk(final.parent)


def _holds(final: Path, notes: Notes) -> bool:
    """Whether a checkpoint has the pieces that were written."""
    try:
        return notes.files.items() <= read_notes(final).files.items()
    except (OSError, ValueError):
        return False


def read_notes(folder: Path) -> Notes:
    """Read what a checkpoint says of itself.

    Raises:
        CheckpointError: it is of another format.
        ValueError: it is damaged.
        OSError: it cannot be read.
    """
    try:
        manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        _check_format(folder, manifest["format"])
        if not {_STATE, _PARAMETERS} <= manifest["files"].keys():
            raise ValueError(f"{_MANIFEST} does not name every file")
        parameters = json.loads((folder / _PARAMETERS).read_text(encoding="utf-8"))
        return Notes(
            state=json.loads((folder / _STATE).read_text(encoding="utf-8")),
            shapes={name: tuple(entry["shape"]) for name, entry in parameters.items()},
            updates={
                name: entry["updates"] for name, entry in parameters.items() if entry["updates"] is not None
            },
            files={
                name: FileMark(entry["bytes"], entry["crc32"]) for name, entry in manifest["files"].items()
            },
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error


def check_file(folder: Path, name: str, expected: FileMark) -> list[Span]:
    """Read every byte of one file of a checkpoint; return the values that it holds.

    Raises:
        ValueError: the file has changed since it was written.
        OSError: it cannot be read.
    """
    if mark_of(folder / name) != expected:
        raise ValueError(f"{name} has changed since it was written")
    return read_spans(folder / name) if is_pieces(name) else []


def is_listed(folder: Path, name: str) -> bool:
    """Whether a folder lists a file. Network file systems cache missing files for a while."""
    try:
        return name in os.listdir(folder)
    except OSError:
        return False


def refuse_another_model(
    folder: Path, there: Mapping[str, tuple[int, ...]], here: Mapping[str, tuple[int, ...]]
) -> None:
    """Compare the shapes of all parameters and buffers.

    Raises:
        CheckpointError: they are not the same.
    """
    differences = [
        f"{name}: {_shape(there.get(name))} there, {_shape(here.get(name))} here"
        for name in sorted(there.keys() | here.keys())
        if there.get(name) != here.get(name)
    ]
    if differences:
        more = len(differences) - _MOST_NAMED
        tail = f", and {more} more" if more > 0 else ""
        raise CheckpointError(
            f"{folder} is of another model ({'; '.join(differences[:_MOST_NAMED])}{tail}): "
            "continue it with the code and config that wrote it, or choose another run_dir"
        )


def _check_format(folder: Path, number: int) -> None:
    if number == 1:
        raise CheckpointError(
            f"{folder} was written by an older version, as DeepSpeed's own files (format 1), which are not "
            "read any more: continue the run with the version that its environment.json names, or choose "
            "another run_dir"
        )
    if number != FORMAT:
        raise CheckpointError(
            f"{folder} is of format {number!r}, and this version reads format {FORMAT}: "
            "continue the run with the version that its environment.json names"
        )


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1), encoding="utf-8")
    _to_disk(path)


def _to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _shape(shape: tuple[int, ...] | None) -> str:
    return "not" if shape is None else "x".join(map(str, shape)) or "one value"
