"""`kinemae data index SHARDS [OUT]`: index any WebDataset, without copying a video.

    OUT/ or OUT/train/ validation/ ...   index.arrow, dataset.json, rejected.jsonl: see `data_tools/index.py`;
                                         notes.jsonl: readable videos with anomalies
    OUT/indexed.jsonl                    results of each shard, until the command is complete

Shards inside OUT are referred to by relative paths, others by absolute path or URL.
"""

import argparse
import dataclasses
import json
import os
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kinemae.data_tools.command import DataError, log, writing_to
from kinemae.data_tools.config import load_config, require
from kinemae.data_tools.curation.frame_stats import COLUMNS as CURATION_COLUMNS
from kinemae.data_tools.data_set_files import files_of
from kinemae.data_tools.files import atomic_write_text, to_jsonl
from kinemae.data_tools.index import (
    DATASET_NAME,
    NO_LABEL,
    REJECTED_NAME,
    Sample,
    Shard,
    write_index,
)
from kinemae.data_tools.indexing.field_rules import (
    FieldRules,
    ShardContents,
    read_shards,
    resolve_label,
    stored_classes,
    warn_of_skipped,
    warn_of_unused,
)
from kinemae.data_tools.indexing.scan import Probe, SampleScan, ShardScan, scan_shards
from kinemae.data_tools.indexing.shard_list import InputShard, find_shards
from kinemae.data_tools.manifest.class_map import (
    CLASSES_NAME,
    class_list,
    numbered_classes,
    read_classes,
    sorted_classes,
    unified_labels,
    warn_of_labels,
)
from kinemae.data_tools.manifest.table import Row, unify_columns
from kinemae.data_tools.pool import TIMEOUT_S, Engine, check_engine
from kinemae.data_tools.sharding.rejects import NOTES_NAME, check_rejects, warn_of_notes
from kinemae.data_tools.storage.location import Location, location
from kinemae.data_tools.storage.retries import mask_secrets

LOG_NAME = "indexed.jsonl"
_COMMAND = "data_tools index"
_COLUMNS = (
    *("key", "offset", "length", "crc32", "content", "name"),
    *("start_s", "reference_stride", "reference_phase", "frame_step"),
)


@dataclass(frozen=True, kw_only=True)
class IndexConfig(FieldRules):
    """Config of `kinemae data index`, in addition to the rules for the metadata of samples.

    Attributes:
        classes: fixes the class numbers: an earlier OUT, a dataset.json, or a list of classes.
        probe: "full" decodes every frame; "header" decodes the first frame and takes the number of frames
            from the container; "stored" reads no video and takes all columns from the .json that `shard`
            wrote, and leaves the sha256 of shards empty; "none" reads no video either, and leaves checksum,
            frames, duration, size and codec of other samples unknown.
        curate: add the curation columns, see `curation.frame_stats`, of samples whose .json has none.
        max_bad_fraction: stop if a larger fraction of the videos is unreadable; 1 never stops.
        workers: processes; 0 means one per core.
        timeout_s: reject a video after this time without progress.
        engine: "ray" reads the shards on a Ray cluster.
    """

    classes: str | None = None
    probe: Probe = "full"
    curate: bool = False
    max_bad_fraction: float = 1.0
    workers: int = 0
    timeout_s: float = TIMEOUT_S
    engine: Engine = "local"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.max_bad_fraction <= 1, "max_bad_fraction", "lie in [0, 1]", self.max_bad_fraction)
        require(self.workers >= 0, "workers", "be 0 or more", self.workers)
        require(self.timeout_s > 0, "timeout_s", "be above 0", self.timeout_s)
        check_engine(self.engine)
        require(self.probe == "full" or not self.curate, "curate", "be false unless probe=full", self.curate)
        taken = sorted(CURATION_COLUMNS.keys() & set(self.columns)) if self.curate else []
        require(not taken, "columns", "not hold names of curation columns if curate=true", taken)
        is_one = self.classes is None or self.num_classes == 0
        require(is_one, "classes", "be omitted if num_classes is set", self.classes)


@dataclass(frozen=True, kw_only=True)
class _Split:
    """One data set: its folder, its samples, and the positions of its shards by shard number."""

    folder: Path
    numbers: Mapping[int, int]
    samples: Sequence[SampleScan]


def run_index(arguments: argparse.Namespace) -> None:
    """Find the shards, read and check all of them, and write an index for each split."""
    root = location(arguments.shards)
    out = _out(root, arguments.out)
    settings = load_config(IndexConfig, None, arguments.overrides)
    shards = find_shards(root, by_split=settings.by_split)
    _check_no_secrets(shards)
    folders = {split: out / split if split else out for split in sorted({s.split or "" for s in shards})}
    for folder in folders.values():
        _check_not_sharded(folder)
    rules = resolve_label(settings, shards)
    log.info("%s: %d shards, splits: %s", root, len(shards), ", ".join(filter(None, folders)) or "none")
    if arguments.dry_run:
        contents = read_shards(shards, rules)
        warn_of_unused([content.unused for content in contents], rules)
        warn_of_skipped(shards, contents)
        report = _counts(contents)
    else:
        with writing_to(out):
            report = _index(shards, folders, out, rules, settings)
    if arguments.json:
        sys.stdout.write(json.dumps(report, ensure_ascii=False) + "\n")


def _index(
    shards: Sequence[InputShard],
    folders: Mapping[str, Path],
    out: Path,
    rules: FieldRules,
    settings: IndexConfig,
) -> dict[str, Any]:
    out.mkdir(parents=True, exist_ok=True)
    log_file = out / LOG_NAME
    scans = scan_shards(
        shards,
        rules,
        log_file,
        probe=settings.probe,
        curate=settings.curate,
        workers=settings.workers,
        timeout_s=settings.timeout_s,
        engine=settings.engine,
    )
    warn_of_unused([scan.unused for scan in scans], rules)
    samples = _unified(shards, [sample for scan in scans for sample in scan.samples])
    if not samples:
        raise DataError(f"{shards[0].place}: expected members such as KEY.mp4, got no sample in any shard")
    check_rejects(_rejected(shards, samples), len(samples), settings.max_bad_fraction, log_file)
    classes = _classes(shards, samples, settings.classes, rules)
    warn_of_labels(classes)
    record = dataclasses.asdict(settings)
    for name in ("workers", "timeout_s", "engine"):  # they do not change the result
        del record[name]
    report = {}
    for split, folder in folders.items():
        chosen = [number for number, shard in enumerate(shards) if (shard.split or "") == split]
        numbers = {number: position for position, number in enumerate(chosen)}
        of_split = _with_unique_keys(shards, [sample for sample in samples if sample.shard in numbers])
        part = _Split(folder=folder, numbers=numbers, samples=of_split)
        tars = _tars(shards, scans, part, out)
        made_by = {"command": _COMMAND, "split": split, "config": record}
        report[split or "all"] = _write(part, shards, tars, classes, made_by)
    log_file.unlink()
    return {"splits": report, "classes": classes}


def _unified(shards: Sequence[InputShard], samples: Sequence[SampleScan]) -> list[SampleScan]:
    """One type for each column and one spelling for each integer label, in all splits."""
    rows = [Row(where=f"{shards[each.shard].name}, {each.key}", cells=each.extra) for each in samples]
    spelling = unified_labels(sample.label for sample in samples)
    return [
        replace(sample, extra=dict(row.cells), label=spelling.get(sample.label or "", sample.label))
        for sample, row in zip(samples, unify_columns(rows), strict=True)
    ]


def _with_unique_keys(shards: Sequence[InputShard], samples: Sequence[SampleScan]) -> list[SampleScan]:
    """Prefix a key of several shards with the name of its shard, as in `1.tar/KEY`."""
    counts = Counter(sample.key for sample in samples)
    repeated = [key for key, count in counts.items() if count > 1]
    if repeated:
        log.info(
            "%d keys are in several shards, first %s: they get the name of the shard as a prefix",
            *(len(repeated), repeated[0]),
        )
    unique = [
        replace(sample, key=f"{shards[sample.shard].name}/{sample.key}") if counts[sample.key] > 1 else sample
        for sample in samples
    ]
    [(key, count)] = Counter(sample.key for sample in unique).most_common(1) or [("", 0)]
    if count > 1:
        raise DataError(f"key {key}: expected unique keys, got it twice; fix: rename one of the shards")
    return unique


def _classes(
    shards: Sequence[InputShard], samples: Sequence[SampleScan], given: str | None, rules: FieldRules
) -> list[str]:
    """The classes of all splits, in order."""
    if rules.num_classes:
        return numbered_classes(rules.num_classes)
    if given:
        labels = {f"{shards[sample.shard].name}, {sample.key}": sample.label for sample in samples}
        return class_list(labels, read_classes(given), origin=f"classes={given}")
    labelled = [
        (sample.label, sample.label_index or 0)
        for sample in samples
        if sample.label is not None and sample.info is not None
    ]
    if rules.label == "kinemae":
        return stored_classes(labelled, _class_lists(shards))
    return sorted_classes(label for label, _ in labelled)


def _class_lists(shards: Sequence[InputShard]) -> list[list[str]]:
    """The class lists of shards made by `shard`: in their folder, or in its parent OUT."""
    folders = dict.fromkeys(shard.place.path.parent for shard in shards if shard.place.path is not None)
    files = dict.fromkeys(folder / CLASSES_NAME for inner in folders for folder in (inner, inner.parent))
    return [read_classes(str(file), may_be_empty=True) for file in files if file.is_file()]


def _write(
    part: _Split,
    shards: Sequence[InputShard],
    tars: Sequence[Shard],
    classes: Sequence[str],
    made_by: Mapping[str, Any],
) -> dict[str, Any]:
    """Write one data set: its rejected and noted videos, then its index."""
    folder, samples = part.folder, part.samples
    folder.mkdir(parents=True, exist_ok=True)
    rejected = _rejected(shards, samples)
    atomic_write_text(folder / REJECTED_NAME, to_jsonl(rejected))
    notes = [
        {"path": sample.name, "shard": shards[sample.shard].name, "note": sample.note}
        for sample in samples
        if sample.note
    ]
    atomic_write_text(folder / NOTES_NAME, to_jsonl(notes))
    good = [sample for sample in samples if sample.info is not None]
    class_numbers = {label: number for number, label in enumerate(classes)}
    rows = [
        Sample(
            **dataclasses.asdict(sample.info),
            **{name: getattr(sample, name) for name in _COLUMNS},
            shard=part.numbers[sample.shard],
            label=NO_LABEL if sample.label is None else class_numbers[sample.label],
            group=sample.group or "",
        )
        for sample in good
        if sample.info is not None
    ]
    names = sorted({name for sample in good for name in sample.extra})
    extra = {name: [sample.extra.get(name) for sample in good] for name in names}
    write_index(folder, rows, tars, classes, dict(made_by), extra)
    warn_of_notes(notes, folder / NOTES_NAME)
    log.info("%s: %d videos in %d shards, %d rejected", folder, len(rows), len(tars), len(rejected))
    unread = sum(not row.is_read for row in rows)
    if unread:
        log.warning(
            "%s: %d videos were not read: checksum, frames, duration, size and codec are unknown; training "
            "takes them from each video, evaluation and reports need probe=header or probe=full",
            *(folder, unread),
        )
    return {"samples": len(rows), "shards": len(tars), "rejected": len(rejected)}


def _rejected(shards: Sequence[InputShard], samples: Sequence[SampleScan]) -> list[dict[str, str]]:
    return [
        {"path": sample.name, "shard": shards[sample.shard].name, "reason": sample.reason}
        for sample in samples
        if sample.info is None
    ]


def _tars(shards: Sequence[InputShard], scans: Sequence[ShardScan], part: _Split, out: Path) -> list[Shard]:
    counts = Counter(sample.shard for sample in part.samples if sample.info is not None)
    return [
        Shard(
            name=_shard_name(shards[number].place, part.folder, out),
            samples=counts[number],
            bytes=scans[number].bytes,
            sha256=scans[number].sha256,
        )
        for number in part.numbers
    ]


def _shard_name(place: Location, folder: Path, out: Path) -> str:
    """A relative path if the shard lies in OUT, so that both can be moved together."""
    if place.path is None:
        return place.url
    path = place.path.resolve()
    if path.is_relative_to(out.resolve()):
        return Path(os.path.relpath(path, folder.resolve())).as_posix()
    return str(path)


def _counts(contents: Sequence[ShardContents]) -> dict[str, Any]:
    """The report of a dry run."""
    labels = [sample.label for content in contents for sample in content.samples if sample.label is not None]
    spelling = unified_labels(labels)
    return {
        "shards": len(contents),
        "videos": sum(len(content.samples) for content in contents),
        "without_video": sum(len(content.skipped) for content in contents),
        "classes": sorted_classes(spelling.get(label, label) for label in labels),
    }


def _out(root: Location, out: str | None) -> Path:
    """The folder of the index: OUT, or that of the tars."""
    if out is None and (root.path is None or not root.path.is_dir()):
        raise ValueError(f"SHARDS {root}: expected a local folder, or OUT for the index; fix: add OUT")
    place = location(out or root)
    if place.path is None:
        raise ValueError(f"OUT {place}: expected a local folder, got a URL; fix: upload the index afterwards")
    return place.path


def _check_no_secrets(shards: Sequence[InputShard]) -> None:
    """Reject URLs with secrets: dataset.json holds the URLs and may be public."""
    for shard in shards:
        if shard.place.is_remote and mask_secrets(shard.place.url) != shard.place.url:
            raise ValueError(
                f"SHARDS {shard.place}: expected a URL without secrets, got a password or a signature, which "
                "the index would publish; fix: set the credentials in the environment"
            )


def _check_not_sharded(folder: Path) -> None:
    """Reject OUT if it holds an index made by `shard`."""
    try:
        description = json.loads((folder / DATASET_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    try:
        files = files_of(description)
        made_by = description.get("made_by", {}).get("command")
    except (ValueError, KeyError, TypeError, AttributeError):  # damaged: it is written again
        return
    if "removed" in files:
        raise ValueError(
            f"OUT {folder}: expected a data set without removed samples, got {files['removed'].rows}, which "
            "the new index would contain again; fix: run `kinemae data compact` first, or choose another OUT"
        )
    if made_by != _COMMAND and all((folder / file.name).exists() for file in files.values()):
        raise ValueError(
            f"OUT {folder}: expected a new folder, got a data set made by {made_by or 'another program'}, "
            "whose index has more columns than this command can write; fix: choose another OUT"
        )
