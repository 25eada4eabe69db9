"""A checkpoint as a folder: what stands in it, when it counts, and whether it is sound.

step-00001000/pieces-00000-of-00004.safetensors    weights and moments, one file a writing process
step-00001000/parameters.json      shape and number of updates of every parameter
step-00001000/state.json           the little that is not a function of the step
step-00001000/manifest.json        size and checksum of every file; written last
step-00002000.partial/             a save under way, or one that never ended
"""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_tools.command import CheckpointError
from pretrain.runtime.piece_files import FileMark, Span, mark_of, read_spans

FORMAT = 2

_MOST_NAMED = 5
_PARTIAL, _PIECES = ".partial", "pieces-"
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


def partial_folder(checkpoints: Path, step: int) -> Path:
    """Where it is written."""
    return checkpoints / f"step-{step:08d}{_PARTIAL}"


def pieces_file(rank: int, world: int) -> str:
    """The name of one process's file."""
    return f"{_PIECES}{rank:05d}-of-{world:05d}.safetensors"


def complete(checkpoints: Path) -> dict[int, Path]:
    """Checkpoints that bear their final name, by step, oldest first. They may be damaged."""
    found = {}
    for path in checkpoints.glob("step-*"):
        number = path.name.removeprefix("step-")
        if number.isdigit():
            found[int(number)] = path
    return dict(sorted(found.items()))


def remove_partial(checkpoints: Path) -> None:
    """Sweep up saves that never ended.

    Raises:
        OSError: they cannot be removed.
    """
    for path in checkpoints.glob(f"*{_PARTIAL}"):
        shutil.rmtree(path)


def commit(partial: Path, final: Path, notes: Notes) -> None:
    """Make a folder whose pieces are on the disk a checkpoint: from here on it counts, or it never was.

    Raises:
        OSError: it could not be written.
    """
    parameters = {
        name: {"shape": list(shape), "updates": notes.updates.get(name)}
        for name, shape in notes.shapes.items()
    }
    files = dict(notes.files)
    for name, content in ((_STATE, notes.state), (_PARAMETERS, parameters)):
        _write_json(partial / name, content)
        files[name] = mark_of(partial / name)
    head = {"format": FORMAT, **{key: notes.state[key] for key in ("step", "world", "zero_stage")}}
    marks = {name: {"bytes": mark.size, "crc32": mark.crc32} for name, mark in sorted(files.items())}
    _write_json(partial / _MANIFEST, {**head, "files": marks})
    _to_disk(partial)
    if final.exists():  # damaged, or of a line of steps that was given up: an older one was taken up
        shutil.rmtree(final)
    partial.rename(final)
    _to_disk(final.parent)


def read_notes(folder: Path) -> Notes:
    """Read what a checkpoint says of itself.

    Raises:
        CheckpointError: it is of another format.
        ValueError: it is damaged.
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
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error


def check_files(folder: Path, files: Mapping[str, FileMark]) -> list[Span]:
    """Read every byte of some of a checkpoint's files; say which values stand in them.

    Raises:
        ValueError: a file is not as it was written.
    """
    spans = []
    for name, expected in files.items():
        try:
            found = mark_of(folder / name)
        except OSError as error:
            raise ValueError(str(error)) from error
        if found != expected:
            raise ValueError(f"{name} has changed since it was written")
        if name.startswith(_PIECES):
            spans += read_spans(folder / name)
    return spans


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
