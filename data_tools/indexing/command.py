"""`kinemae data index SHARDS [OUT]`: an index of our format for anybody's WebDataset, read in place.

    OUT/ or OUT/train/ validation/ ...   index.arrow, dataset.json, rejected.jsonl, see `data_tools/index.py`
                                         and notes.jsonl: videos that are odd and nevertheless taken
    OUT/indexed.jsonl                    only while running: what is known of each shard

No video is copied. The shards are named relative to OUT where they lie in it, else by path or URL.
"""

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from kinemae.data_tools.command import DataError, log, writing_to
from kinemae.data_tools.config import load_config, require
from kinemae.data_tools.files import atomic_write_text, to_jsonl
from kinemae.data_tools.index import (
    DATASET_NAME,
    INDEX_NAME,
    NO_LABEL,
    REJECTED_NAME,
    Sample,
    Shard,
    write_index,
)
from kinemae.data_tools.indexing.combine import (
    counted,
    lists_of_classes,
    one_spelling_each,
    typed,
    with_unique_keys,
)
from kinemae.data_tools.indexing.field_rules import Rules, read_shelves, settle
from kinemae.data_tools.indexing.own_json import classes_told
from kinemae.data_tools.indexing.scan import Found, examine_shards
from kinemae.data_tools.indexing.shard_list import ForeignShard, find_shards
from kinemae.data_tools.indexing.warnings import warn_of_left_out, warn_of_unread
from kinemae.data_tools.manifest.class_map import read_classes, sorted_classes
from kinemae.data_tools.manifest.entries import numbered_classes
from kinemae.data_tools.manifest.labels import warn_of_labels
from kinemae.data_tools.pool import TIMEOUT_S
from kinemae.data_tools.sharding.rejects import NOTES_NAME
from kinemae.data_tools.storage.location import Location, location
from kinemae.data_tools.storage.retries import mask_secrets

JOURNAL_NAME = "indexed.jsonl"
_COMMAND = "data_tools index"
_COLUMNS = (
    *("key", "offset", "length", "crc32", "content", "name"),
    *("start_s", "reference_stride", "reference_phase"),
)


@dataclass(frozen=True, kw_only=True)
class IndexConfig:
    """How a foreign WebDataset is indexed.

    Attributes:
        label: cls, txt, NAME.cls, json.FIELD, none, or auto (cls, else the json's `label`, else none).
        video: the ending of the member to take where a sample has several videos.
        group: the field of the json that tells the group.
        columns: fields of the json that become columns of the index.
        classes: how many there are, and then every label must be a whole number below that; or, as for
            `shard`, an earlier OUT, a dataset.json, or a list of classes.
        missing_labels: what to do with a sample without a label where others have one: error, or reject.
        by_split: whether folders (train/) and names (train-0000.tar) tell the split.
        probe: "full" decodes every frame; "header" only the first, and believes the container.
        max_bad_fraction: stop where more than this share of the videos cannot be read; 1 never stops.
        workers: processes; 0 means one for each core.
        timeout_s: a video without progress for so long is skipped.
    """

    label: str = "auto"
    video: str = ""
    group: str = ""
    columns: list[str] = field(default_factory=list)
    classes: str | None = None
    missing_labels: Literal["error", "reject"] = "error"
    by_split: bool = True
    probe: Literal["full", "header"] = "full"
    max_bad_fraction: float = 1.0
    workers: int = 0
    timeout_s: float = TIMEOUT_S

    def __post_init__(self) -> None:
        self.rules()
        require(0 <= self.max_bad_fraction <= 1, "max_bad_fraction", "lie in [0, 1]", self.max_bad_fraction)
        require(self.workers >= 0, "workers", "be 0 or more", self.workers)
        require(self.timeout_s > 0, "timeout_s", "be above 0", self.timeout_s)

    def rules(self) -> Rules:
        """What concerns the samples."""
        return Rules(
            label=self.label,
            video=self.video,
            group=self.group,
            columns=tuple(self.columns),
            classes=int(self.classes) if self.classes and self.classes.isdecimal() else 0,
            missing_labels=self.missing_labels,
        )


def run_index(arguments: argparse.Namespace) -> None:
    """The command: find the shards, read and check all of them, write an index for each split."""
    root = location(arguments.shards)
    out, overrides = _out(root, arguments.out, arguments.overrides)
    settings = load_config(IndexConfig, None, overrides)
    shards = find_shards(root, by_split=settings.by_split)
    _refuse_secrets(shards)
    folders = {split: out / split if split else out for split in sorted({s.split or "" for s in shards})}
    for folder in folders.values():
        _refuse_ours(folder)
    rules = settle(settings.rules(), shards)
    log.info("%s: %d shards, splits: %s", root, len(shards), ", ".join(filter(None, folders)) or "none named")
    if arguments.dry_run:
        shelves = read_shelves(shards, rules)
        warn_of_unread([shelf.unread for shelf in shelves], rules)
        warn_of_left_out(shards, shelves)
        report = counted(shelves)
    else:
        with writing_to(out):
            report = _index(shards, folders, out, rules, settings)
    if arguments.json:
        sys.stdout.write(json.dumps(report, ensure_ascii=False) + "\n")


def _index(
    shards: Sequence[ForeignShard],
    folders: dict[str, Path],
    out: Path,
    rules: Rules,
    settings: IndexConfig,
) -> dict[str, Any]:
    out.mkdir(parents=True, exist_ok=True)
    journal = out / JOURNAL_NAME
    is_full = settings.probe == "full"
    found = examine_shards(
        shards, rules, journal, is_full=is_full, workers=settings.workers, timeout_s=settings.timeout_s
    )
    warn_of_unread([one.unread for one in found], rules)
    found = one_spelling_each(typed(found))
    of_split = {
        split: with_unique_keys([one for one in found if (one.shard.split or "") == split])
        for split in folders
    }
    _refuse_too_bad(found, out, settings.max_bad_fraction)
    classes = _classes(found, settings.classes, rules)
    warn_of_labels(classes)
    report = {}
    for split, group in of_split.items():
        made_by = {"command": _COMMAND, "split": split, "config": _lasting(settings)}
        report[split or "all"] = _write(group, folders[split], out, classes, made_by)
    journal.unlink()
    return {"splits": report, "classes": classes}


def _write(
    found: Sequence[Found], folder: Path, out: Path, classes: list[str], made_by: dict[str, Any]
) -> dict[str, Any]:
    """One data set: its rejected videos, then its index."""
    folder.mkdir(parents=True, exist_ok=True)
    good = [(position, row) for position, one in enumerate(found) for row in one.rows if row.info is not None]
    bad = [
        {"path": row.name, "shard": one.shard.name, "reason": row.reason}
        for one in found
        for row in one.rows
        if row.info is None
    ]
    atomic_write_text(folder / REJECTED_NAME, to_jsonl(bad))
    odd = [{"path": row.name, "shard": one.shard.name, "note": row.note} for one in found for row in one.rows]
    atomic_write_text(folder / NOTES_NAME, to_jsonl(entry for entry in odd if entry["note"]))
    numbers = {label: number for number, label in enumerate(classes)}
    samples = [
        Sample(
            **dataclasses.asdict(row.info),
            **{name: getattr(row, name) for name in _COLUMNS},
            shard=position,
            label=NO_LABEL if row.label is None else numbers[row.label],
            group=row.group or "",
        )
        for position, row in good
        if row.info is not None
    ]
    shards = [
        Shard(
            name=_shard_name(one.shard.place, folder, out),
            samples=sum(row.info is not None for row in one.rows),
            bytes=one.bytes,
            sha256=one.sha256,
        )
        for one in found
    ]
    names = sorted({name for _, row in good for name in row.extra})
    extra = {name: [row.extra.get(name) for _, row in good] for name in names}
    write_index(folder, samples, shards, classes, made_by, extra)
    noted = sum(bool(entry["note"]) for entry in odd)
    if noted:
        log.warning("%s: %d videos are odd, see %s", folder, noted, NOTES_NAME)
    log.info("%s: %d videos in %d shards, %d rejected", folder, len(samples), len(shards), len(bad))
    return {"samples": len(samples), "shards": len(shards), "rejected": len(bad)}


def _classes(found: Sequence[Found], given: str | None, rules: Rules) -> list[str]:
    """The classes in their order, which are those of all splits."""
    if rules.classes:
        return numbered_classes(rules.classes)
    if not given:
        good = [row for one in found for row in one.rows if row.label is not None and row.info is not None]
        if rules.label == "ours":
            pairs = [(row.label or "", row.label_index or 0) for row in good]
            return classes_told(pairs, lists_of_classes([one.shard.place for one in found]))
        return sorted_classes([row.label for row in good if row.label is not None])
    classes = read_classes(given)
    for one in found:
        for row in one.rows:
            if row.label is not None and row.label not in classes:
                raise DataError(
                    f"{one.shard.name}, {row.key}: label {row.label!r} is not among the {len(classes)} "
                    f"classes of classes={given}"
                )
    return classes


def _shard_name(place: Location, folder: Path, out: Path) -> str:
    """Relative where the shard lies in OUT, so that both can be moved together."""
    if place.path is None:
        return place.url
    path = place.path.resolve()
    if path.is_relative_to(out.resolve()):
        return Path(os.path.relpath(path, folder.resolve())).as_posix()
    return str(path)


def _out(root: Location, out: str | None, overrides: list[str]) -> tuple[Path, list[str]]:
    """OUT, and the overrides, of which argparse may have taken the first for OUT."""
    if out is not None and "=" in out and not Path(out).is_dir():
        overrides = [out, *overrides]
        out = None
    if out is None and (root.path is None or not root.path.is_dir()):
        raise ValueError(f"SHARDS {root} is no folder of this machine: give one for the index, SHARDS OUT")
    place = location(out or root)
    if place.path is None:
        raise ValueError(f"OUT {place} must be a folder of this machine; upload what is in it afterwards")
    return place.path, overrides


def _refuse_secrets(shards: Sequence[ForeignShard]) -> None:
    """Their URLs are written into dataset.json, for everybody who may read it."""
    for shard in shards:
        if shard.place.is_remote and mask_secrets(shard.place.url) != shard.place.url:
            raise ValueError(
                f"SHARDS {shard.place} holds a password or a signature, which the index would show: "
                "give it through the environment instead"
            )


def _refuse_ours(folder: Path) -> None:
    try:
        description = json.loads((folder / DATASET_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    made_by = description.get("made_by", {}).get("command") if isinstance(description, dict) else None
    if made_by != _COMMAND and (folder / INDEX_NAME).exists():
        raise ValueError(
            f"OUT {folder}: expected a new folder, got a data set made by "
            f"{made_by or 'another program'}, whose index holds more than this command can "
            "derive; fix: choose another OUT"
        )


def _refuse_too_bad(found: Sequence[Found], out: Path, max_bad_fraction: float) -> None:
    pairs = [(one.shard.name, row) for one in found for row in one.rows]
    bad = [(name, row) for name, row in pairs if row.info is None]
    if not pairs:
        raise DataError(
            f"no shard holds a sample, first {found[0].shard.place}: expected members such as KEY.mp4"
        )
    if not bad:
        return
    first = f"first {bad[0][1].name} in {bad[0][0]}: {bad[0][1].reason}"
    if len(bad) == len(pairs):
        raise DataError(f"none of the {len(pairs)} videos can be read, {first}")
    if len(bad) > max_bad_fraction * len(pairs):
        raise DataError(
            f"{len(bad)} of {len(pairs)} videos cannot be read, more than max_bad_fraction="
            f"{max_bad_fraction}, {first}; what is known so far is in {out / JOURNAL_NAME}"
        )
    log.warning("%d of %d videos cannot be read, %s; see %s", len(bad), len(pairs), first, REJECTED_NAME)


def _lasting(settings: IndexConfig) -> dict[str, Any]:
    """The config without what cannot change the result."""
    record = dataclasses.asdict(settings)
    del record["workers"], record["timeout_s"]
    return record
