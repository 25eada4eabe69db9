"""`kinemae data merge SOURCE ... OUT`, also for the parts of `kinemae data shard ... part=3/100`.

kinemae data merge OUT/parts OUT
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from kinemae.data_tools.command import DataError, log
from kinemae.data_tools.config import load_config
from kinemae.data_tools.editing.arguments import folders_and_overrides
from kinemae.data_tools.editing.merge import MergeConfig, merge
from kinemae.data_tools.editing.sets import open_sources
from kinemae.data_tools.files import to_json_text, to_jsonl
from kinemae.data_tools.folder_checks import check_shards_exist
from kinemae.data_tools.index import DATASET_NAME, REJECTED_NAME, open_index
from kinemae.data_tools.manifest.class_map import CLASSES_NAME, warn_of_absent_classes
from kinemae.data_tools.manifest.videos import SPLITS
from kinemae.data_tools.sharding.parts import STATE_NAME, Part, part_in
from kinemae.data_tools.sharding.rejects import NOTES_NAME, check_rejects, read_entries, warn_of_notes
from kinemae.data_tools.storage.location import Location

_SHOWN = 5
_SAME = ("source", "config", "manifest", "limits")  # fields that are equal in the states of all parts
_Parts = Mapping[Part, Location]


def run_merge(arguments: argparse.Namespace) -> None:
    """Write a data set, or one for each split, from several or from parts."""
    folders, overrides = folders_and_overrides(arguments.sources, at_least=2, what="SOURCE ... OUT")
    config = load_config(MergeConfig, None, overrides)
    *sources, out = folders
    parts = find_parts(sources[0]) if len(sources) == 1 else {}
    if parts:
        merge_parts(parts, out, config, dry_run=arguments.dry_run)
    else:
        merge(open_sources(sources), out, config, dry_run=arguments.dry_run)


def find_parts(folder: Location) -> dict[Part, Location]:
    """The parts in a folder, in order; empty for another folder."""
    found = {part: folder / name for name in folder.list() if (part := part_in(name)) is not None}
    return dict(sorted(found.items()))


def merge_parts(parts: _Parts, out: Location, config: MergeConfig, *, dry_run: bool = False) -> None:
    """Write the data sets of all parts together, and the lists of rejected videos.

    The result holds the samples of one run without parts. A repeated merge resumes.

    Args:
        dry_run: check and count only.

    Raises:
        DataError: a part is missing or incomplete, parts come from different sources or configs, a shard is
            missing, splits have common videos, or too many videos are rejected.
    """
    states = _checked_states(parts)
    indexes = {
        split: [
            open_index(folder / split, check_shards=False)
            for folder in parts.values()
            if (folder / split / DATASET_NAME).exists()
        ]
        for split in SPLITS
    }
    splits = {split: found for split, found in indexes.items() if found}
    check_shards_exist(
        ((index.folder, index.shards.sizes) for found in splits.values() for index in found),
        fix="remove this folder and run its part again",
    )
    total = sum(state["videos"] for state in states)
    limits = states[0]["limits"]
    if dry_run:
        rejected = [entry for place in parts.values() for entry in _entries(place, REJECTED_NAME)]
        check_rejects(rejected, total, limits["max_bad_fraction"], out / REJECTED_NAME)
    else:
        _write_lists(parts, out, tuple(splits), total=total, max_bad_fraction=limits["max_bad_fraction"])
    config = replace(config, leaks="warn") if limits["leaks"] == "warn" else config
    merge(splits, out, config, dry_run=dry_run)
    if dry_run:
        return
    for split, found in splits.items():
        present = {int(label) for index in found for label in np.unique(index.column("label"))}
        warn_of_absent_classes(split, found[0].classes, present)
    sizes = sum(int(state["sizes"], 16) for state in states) % (1 << 64)
    together = {**states[0], "videos": total, "sizes": f"{sizes:016x}"}
    del together["limits"]
    (out / STATE_NAME).write(to_json_text(together).encode())


def _checked_states(parts: _Parts) -> list[dict[str, Any]]:
    """The content of shard.json of each part.

    Raises:
        DataError: a part is missing, incomplete or of another run.
    """
    folder = next(iter(parts.values()))
    counts = sorted({part.count for part in parts})
    if len(counts) > 1:
        raise DataError(
            f"{folder}: expected parts of one run, got {' and '.join(map(str, counts))} as the number of "
            "parts; fix: remove the folders of the other run"
        )
    count, numbers = counts[0], {part.number for part in parts}
    states = {part.number: _state(place) for part, place in parts.items()}
    missing = [number for number in range(count) if not states.get(number, {}).get("complete")]
    if missing:
        shown = ", ".join(map(str, missing[:_SHOWN])) + (", ..." if len(missing) > _SHOWN else "")
        what = "incomplete" if missing[0] in numbers else "missing"
        raise DataError(
            f"{folder}: expected {count} complete parts, got {count - len(missing)}; {what}: {shown}; "
            f"fix: run `kinemae data shard` with part={missing[0]}/{count}"
        )
    for part, place in parts.items():
        different = [name for name in _SAME if states[part.number][name] != states[0][name]]
        if different:
            raise DataError(
                f"{place}: expected the {' and '.join(different)} of {folder}, got another one; "
                "fix: run this part again, with equal arguments and an unchanged source"
            )
    return [states[number] for number in range(count)]


def _state(place: Location) -> dict[str, Any]:
    if not (place / STATE_NAME).exists():
        return {}
    state: dict[str, Any] = json.loads((place / STATE_NAME).read())
    return state


def _write_lists(
    parts: _Parts, out: Location, splits: Sequence[str], *, total: int, max_bad_fraction: float
) -> None:
    """Write the classes and the lists of rejected and noted videos of all parts.

    Raises:
        DataError: too many videos are rejected.
    """
    for name in (REJECTED_NAME, NOTES_NAME, *(f"{split}/{REJECTED_NAME}" for split in SPLITS)):
        entries = sorted(
            (entry for place in parts.values() for entry in _entries(place, name)),
            key=lambda one: one["path"],
        )
        if entries or name in (REJECTED_NAME, NOTES_NAME) or name.partition("/")[0] in splits:
            (out / name).write(to_jsonl(entries).encode())
        if name == REJECTED_NAME:
            check_rejects(entries, total, max_bad_fraction, out / REJECTED_NAME)
        elif name == NOTES_NAME:
            warn_of_notes(entries, NOTES_NAME)
    (out / CLASSES_NAME).write((next(iter(parts.values())) / CLASSES_NAME).read())
    log.info("%s: %d parts, %d videos", out, len(parts), total)


def _entries(place: Location, name: str) -> list[dict[str, Any]]:
    file = place / name
    return read_entries(file.read().decode()) if file.exists() else []
