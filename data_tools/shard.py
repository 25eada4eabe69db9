"""`python -m data_tools shard SOURCE OUT`: any collection of videos to shards with an index.

    OUT/train/ validation/ ...   a data set each, as `data_tools.index` describes
    OUT/rejected.jsonl           videos that cannot be read, and why; in each split its own as well
    OUT/shard.json               what this is; written first, so that a stopped run can be continued
    OUT/checked.jsonl            only while running: what is known of each video

Equal sources and configs give equal bytes, whatever the number of processes and however often it was stopped.
"""

import argparse
import dataclasses
import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_tools.arrange import divide, safe_keys, shuffled, sorted_classes
from data_tools.command import DataError, log, writing_to
from data_tools.config import load_config, require
from data_tools.examine import Finding, examine
from data_tools.files import write_whole
from data_tools.index import NO_LABEL, Sample, VideoInfo, open_index, write_index
from data_tools.parts import Part, build_part
from data_tools.shard_writer import Place, ShardSample, write_shards
from data_tools.sources.base import Listing, Source, SourceVideo

STATE_NAME = "shard.json"
REJECTED_NAME = "rejected.jsonl"
JOURNAL_NAME = "checked.jsonl"


@dataclass(frozen=True, kw_only=True)
class ShardConfig:
    """How a collection becomes shards.

    Attributes:
        source: the part that lists the videos; None takes "folder" for a folder and "csv" for a csv file.
        validation_share: of each class, where the source has no splits of its own.
        samples_per_shard, megabytes_per_shard: whichever is reached first ends a shard.
        max_bad_fraction: stop where more than this share of the videos cannot be read; 1 never stops.
        workers: processes that check videos; 0 means one for each core.
    """

    source: Part | None = None
    seed: int = 0
    validation_share: float = 0.2
    samples_per_shard: int = 1000
    megabytes_per_shard: int = 256
    max_bad_fraction: float = 1.0
    workers: int = 0

    def __post_init__(self) -> None:
        require(0 <= self.validation_share < 1, "validation_share", "lie in [0, 1)", self.validation_share)
        require(self.samples_per_shard >= 1, "samples_per_shard", "be at least 1", self.samples_per_shard)
        require(
            self.megabytes_per_shard >= 1, "megabytes_per_shard", "be at least 1", self.megabytes_per_shard
        )
        require(0 <= self.max_bad_fraction <= 1, "max_bad_fraction", "lie in [0, 1]", self.max_bad_fraction)
        require(self.workers >= 0, "workers", "be 0 or more", self.workers)


@dataclass(frozen=True, kw_only=True)
class Checked:
    """A readable video on its way into a shard."""

    video: SourceVideo
    key: str
    info: VideoInfo


def run_shard(arguments: argparse.Namespace) -> None:
    """The command: list, check, divide, write."""
    settings = load_config(ShardConfig, None, arguments.overrides)
    root, out = Path(arguments.source), Path(arguments.out)
    listing = list_source(root, settings)
    state = {"source": root.resolve().name, "config": _lasting(settings), "listing": _fingerprint(listing)}
    done = _check_out(out, state)
    listed = _listed(listing)
    log.info(
        "%s: %d videos, %d classes, splits: %s, %d other files",
        *(root, listed["videos"], len(listed["classes"])),
        *(", ".join(listed["given_splits"]) or "none given", listing.ignored),
    )
    if done:
        log.info("%s is complete already", out)
    elif not arguments.dry_run:
        with writing_to(out):
            _shard(listing, out, settings, state)
    if arguments.json:
        written = _written(out) if done or not arguments.dry_run else {}
        sys.stdout.write(json.dumps({**listed, **written}) + "\n")


def list_source(root: Path, settings: ShardConfig) -> Listing:
    """The videos of SOURCE.

    Raises:
        DataError: nothing is there, or no video is.
        ValueError: a file that no source is known for, or a source part that does not exist.
    """
    if not root.exists():
        raise DataError(
            f"SOURCE {root} does not exist: expected a folder of videos or a csv file with path,label"
        )
    part = settings.source or Part(name="folder" if root.is_dir() else "csv")
    if settings.source is None and not root.is_dir() and root.suffix.lower() != ".csv":
        raise ValueError(
            f"SOURCE {root} must be a folder or a .csv file; for another kind set source.name=..."
        )
    listing = build_part("data_tools.sources", part, Source).listing(root)
    if not listing.videos:
        raise DataError(
            f"SOURCE {root} holds no video: expected CLASS/*.mp4, *.mp4, train/CLASS/*.mp4 or a csv file "
            f"with path,label; {listing.ignored} other files were passed over"
        )
    return listing


def _shard(listing: Listing, out: Path, settings: ShardConfig, state: dict[str, Any]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    _write_json(out / STATE_NAME, {**state, "complete": False})
    keys = dict(
        zip((v.name for v in listing.videos), safe_keys([v.name for v in listing.videos]), strict=True)
    )
    findings = examine(listing.videos, out / JOURNAL_NAME, workers=settings.workers)
    found = list(zip(listing.videos, findings, strict=True))
    _write_rejected(out / REJECTED_NAME, found)
    _refuse_too_bad(out, found, settings.max_bad_fraction)
    info = {video.name: finding.info for video, finding in found if finding.info is not None}
    readable = [video for video in listing.videos if video.name in info]
    classes = sorted_classes([video.label for video in readable if video.label is not None])
    splits = divide(readable, validation_share=settings.validation_share, seed=settings.seed)
    for split, videos in splits.items():
        ordered = shuffled(videos, seed=settings.seed, purpose=f"shard/order/{split}")
        checked = [Checked(video=video, key=keys[video.name], info=info[video.name]) for video in ordered]
        _write_split(out / split, checked, classes, settings)
        _write_rejected(
            out / split / REJECTED_NAME, [pair for pair in found if (pair[0].split or "train") == split]
        )
    _warn_of_gaps(splits, classes)
    (out / JOURNAL_NAME).unlink()
    _write_json(out / STATE_NAME, {**state, "complete": True})


def _write_split(
    folder: Path, checked: Sequence[Checked], classes: Sequence[str], settings: ShardConfig
) -> None:
    folder.mkdir(exist_ok=True)
    shards, places = write_shards(
        folder,
        _shard_samples(checked, classes),
        samples_per_shard=settings.samples_per_shard,
        bytes_per_shard=settings.megabytes_per_shard * 1_000_000,
    )
    samples = [_row(item, place, classes) for item, place in zip(checked, places, strict=True)]
    made_by = {"command": "data_tools shard", "split": folder.name, "config": _lasting(settings)}
    write_index(folder, samples, shards, classes, made_by)
    log.info("%s: %d videos in %d shards", folder, len(samples), len(shards))


def _shard_samples(checked: Sequence[Checked], classes: Sequence[str]) -> Iterator[ShardSample]:
    for item in checked:
        try:
            video = item.video.path.read_bytes()
        except OSError as error:
            raise DataError(
                f"cannot read {item.video.name} any more: {error.strerror}; run the same command again"
            ) from error
        description = {
            "name": item.video.name,
            "label": item.video.label,
            "label_index": _label(item, classes),
            **dataclasses.asdict(item.info),
        }
        ending = item.video.name.rpartition(".")[2].lower()
        text = json.dumps(description, ensure_ascii=False)
        yield ShardSample(key=item.key, description=text.encode(), ending=ending, video=video)


def _row(item: Checked, place: Place, classes: Sequence[str]) -> Sample:
    where = dataclasses.asdict(place)
    return Sample(**where, **dataclasses.asdict(item.info), label=_label(item, classes), name=item.video.name)


def _label(item: Checked, classes: Sequence[str]) -> int:
    return NO_LABEL if item.video.label is None else classes.index(item.video.label)


def _refuse_too_bad(out: Path, found: Sequence[tuple[SourceVideo, Finding]], max_bad_fraction: float) -> None:
    bad = [(video, finding) for video, finding in found if finding.info is None]
    if not bad:
        return
    first = f"first {bad[0][0].name}: {bad[0][1].reason}"
    if len(bad) == len(found):
        raise DataError(
            f"none of the {len(found)} videos can be read, {first}; all are listed in {out / REJECTED_NAME}"
        )
    if len(bad) > max_bad_fraction * len(found):
        raise DataError(
            f"{len(bad)} of {len(found)} videos cannot be read, more than max_bad_fraction="
            f"{max_bad_fraction}, {first}; mend or remove those in {out / REJECTED_NAME}, "
            "or raise max_bad_fraction"
        )
    log.warning(
        "%d of %d videos cannot be read, %s; see %s", len(bad), len(found), first, out / REJECTED_NAME
    )


def _warn_of_gaps(splits: dict[str, list[SourceVideo]], classes: Sequence[str]) -> None:
    for split, videos in splits.items():
        present = {video.label for video in videos if video.label is not None}
        absent = [label for label in classes if label not in present]
        if present and absent:
            log.warning("%s has no video of %d classes, first %s", split, len(absent), absent[0])


def _write_rejected(path: Path, found: Sequence[tuple[SourceVideo, Finding]]) -> None:
    bad = [{"path": video.name, "reason": finding.reason} for video, finding in found if finding.info is None]
    path.write_text("".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in bad), encoding="utf-8")


def _check_out(out: Path, state: dict[str, Any]) -> bool:
    """Whether OUT is this data set and complete.

    Raises:
        ValueError: OUT holds something else.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    if not (out / STATE_NAME).is_file():
        raise ValueError(f"OUT {out} is not empty and holds no {STATE_NAME}: give a new folder")
    there = json.loads((out / STATE_NAME).read_text(encoding="utf-8"))
    different = sorted(name for name in state if state[name] != there.get(name))
    if different:
        raise ValueError(
            f"OUT {out} holds another data set, made of {there.get('source')} and different in "
            f"{', '.join(different)}: give a new folder, or remove that one"
        )
    return bool(there.get("complete"))


def _lasting(settings: ShardConfig) -> dict[str, Any]:
    """The config without what cannot change a byte of the result."""
    record = dataclasses.asdict(settings)
    del record["workers"]
    return record


def _fingerprint(listing: Listing) -> str:
    """Names the collection: names, labels, splits and sizes, not where it lies."""
    digest = hashlib.sha256()
    for video in listing.videos:
        size = video.path.stat().st_size if video.path.is_file() else None
        digest.update(json.dumps([video.name, video.label, video.split, size]).encode())
    return digest.hexdigest()[:16]


def _listed(listing: Listing) -> dict[str, Any]:
    return {
        "videos": len(listing.videos),
        "ignored": listing.ignored,
        "classes": sorted_classes([video.label for video in listing.videos if video.label is not None]),
        "given_splits": sorted({video.split for video in listing.videos if video.split is not None}),
    }


def _written(out: Path) -> dict[str, Any]:
    splits = {path.name: open_index(path) for path in sorted(out.iterdir()) if path.is_dir()}
    return {
        "splits": {
            split: {
                "samples": len(index),
                "shards": len(index.shards),
                "bytes": sum(shard.bytes for shard in index.shards),
                "fingerprint": index.fingerprint,
            }
            for split, index in splits.items()
        },
        "rejected": len((out / REJECTED_NAME).read_text(encoding="utf-8").splitlines()),
    }


def _write_json(path: Path, content: dict[str, Any]) -> None:
    write_whole(path, json.dumps(content, indent=1, ensure_ascii=False))
