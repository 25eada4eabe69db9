"""`kinemae data shard SOURCE OUT`: convert a collection of videos to shards with an index.

    OUT/train/ validation/ ...   one data set each, see `kinemae.data_tools.index`
    OUT/classes.json             the classes in order, for classes=OUT of another run
    OUT/rejected.jsonl           rejected videos with reasons; also one per split
    OUT/notes.jsonl              accepted videos with anomalies
    OUT/shard.json               source and config; written first, so that a stopped run can be resumed
    OUT/work/                    until the command is complete: see `kinemae.data_tools.sharding.output`

Equal sources and configs give equal bytes, for any number of processes and of interruptions.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

from kinemae.data_tools.command import DataError, log, writing_to
from kinemae.data_tools.config import load_config
from kinemae.data_tools.files import to_jsonl
from kinemae.data_tools.index import DATASET_NAME, REJECTED_NAME, open_index
from kinemae.data_tools.layouts.base import Job
from kinemae.data_tools.manifest.class_map import CLASSES_NAME, class_list, sorted_classes
from kinemae.data_tools.manifest.videos import SPLITS, Manifest, SourceVideo
from kinemae.data_tools.sharding.output import Output, SplitSample
from kinemae.data_tools.sharding.plan import Plan, ShardConfig, make_plan
from kinemae.data_tools.sharding.rejects import (
    NOTES_NAME,
    check_rejects,
    count_reasons,
    read_entries,
    warn_of_notes,
    warn_of_temporary,
)
from kinemae.data_tools.sharding.splits import Digests, assign_splits, count_copies, leaks, safe_keys
from kinemae.data_tools.sharding.transcode import TranscodeResult, forget_rejected, transcode
from kinemae.data_tools.storage.location import Location, location

STATE_NAME = "shard.json"

Results = Sequence[tuple[SourceVideo, TranscodeResult]]


def run_shard(arguments: argparse.Namespace) -> None:
    """List the videos, transcode them, assign splits, and write the shards."""
    settings = load_config(ShardConfig, None, arguments.overrides)
    root, out = location(arguments.source), location(arguments.out)
    plan = make_plan(root, settings)
    done = _check_out(out, plan.state)
    summary = _summary(plan.manifest)
    log.info(
        "%s: %d videos, %d classes, splits: %s, %d other files",
        *(root, summary["videos"], len(summary["classes"])),
        *(", ".join(summary["given_splits"]) or "none", plan.manifest.ignored),
    )
    output = Output(out, settings.work_dir)
    was_complete = done
    if done and settings.retry_rejected and not arguments.dry_run:
        done = not _is_any_readable_now(plan, output)
    if done:
        log.info("%s is complete already", out)
        warn_of_temporary(_entries(out, REJECTED_NAME))
        output.remove_work()
    elif not arguments.dry_run:
        with writing_to(out.path or output.work):
            output.write_text(STATE_NAME, _json({**plan.state, "complete": False}))
            if was_complete:  # readers of OUT must not find new shards with an old index
                for split in SPLITS:
                    (out / split / DATASET_NAME).remove()
            with output.opened():
                if settings.retry_rejected and not was_complete:
                    forget_rejected(output.work)
                _shard(plan, output)
                output.write_text(STATE_NAME, _json({**plan.state, "complete": True}))
                output.remove_work()
    if arguments.json:
        written = _written(out) if done or not arguments.dry_run else {}
        sys.stdout.write(json.dumps({**summary, **written}) + "\n")


def _is_any_readable_now(plan: Plan, output: Output) -> bool:
    """Try the rejected videos of a complete OUT again; if one is readable, OUT has to be written again."""
    rejected = {entry["path"] for entry in _entries(output.out, REJECTED_NAME)}
    jobs = [job for job in _jobs(plan, output) if job.video.name in rejected]
    if not jobs:
        return False
    with writing_to(output.out.path or output.work), output.opened():
        readable = sum(bool(result.samples) for _, result in _transcode(plan, output, jobs))
    log.info("%d of %d rejected videos are readable now", readable, len(jobs))
    return readable > 0


def _jobs(plan: Plan, output: Output) -> list[Job]:
    settings, videos = plan.settings, plan.manifest.videos
    rules, seed = settings.segment_rules, settings.seed
    return [
        Job(video=video, key=key, folder=output.work, seed=seed, segment_rules=rules)
        for video, key in zip(videos, safe_keys([video.name for video in videos]), strict=True)
    ]


def _transcode(plan: Plan, output: Output, jobs: list[Job]) -> Results:
    results = transcode(
        jobs,
        plan.layout,
        output.work,
        workers=plan.settings.workers,
        is_sharded=output.is_sharded,
        timeout_s=plan.settings.timeout_s,
    )
    return list(zip([job.video for job in jobs], results, strict=True))


def _shard(plan: Plan, output: Output) -> None:
    settings = plan.settings
    results = _transcode(plan, output, _jobs(plan, output))
    rejected = _rejected(results)
    output.write_text(REJECTED_NAME, to_jsonl(rejected))
    notes = [{"path": video.name, "note": result.note} for video, result in results if result.note]
    output.write_text(NOTES_NAME, to_jsonl(notes))
    warn_of_notes(notes, NOTES_NAME)
    check_rejects(rejected, len(results), settings.max_bad_fraction, output.out / REJECTED_NAME)
    readable = {video.name: result for video, result in results if result.samples}
    videos = [video for video in plan.manifest.videos if video.name in readable]
    classes = class_list(
        {video.name: video.label for video in videos},
        plan.given_classes or plan.manifest.classes,
        origin=f"classes={settings.classes}" if plan.given_classes else "the source",
    )
    output.write_text(CLASSES_NAME, _json(classes))
    digests = {name: result.content for name, result in readable.items()}
    splits = _assign_splits(videos, digests, settings)
    for split, members in splits.items():
        samples = [
            SplitSample(video=video, stored=stored, content=digests[video.name])
            for video in members
            for stored in readable[video.name].samples
        ]
        output.write_split(split, samples, classes, plan.record)
        of_split = [pair for pair in results if (pair[0].split or "train") == split]
        output.write_text(f"{split}/{REJECTED_NAME}", to_jsonl(_rejected(of_split)))
    _warn_of_absent_classes(splits, classes)


def _assign_splits(
    videos: list[SourceVideo], digests: Digests, settings: ShardConfig
) -> dict[str, list[SourceVideo]]:
    """Splits without leaks.

    Raises:
        DataError: the source's own splits share a video or a group, and the config does not allow it.
    """
    fraction = settings.validation_fraction
    splits = assign_splits(videos, digests, validation_fraction=fraction, seed=settings.seed)
    found = leaks(splits, digests)
    if found:
        message = f"expected splits without common videos or groups, got {len(found)} leaks, first {found[0]}"
        if settings.leaks == "error":
            raise DataError(f"leaks=error: {message}; fix: remove one of them, or set leaks=warn")
        log.warning("%s", message)
    copies = count_copies(videos, digests)
    if copies:
        log.warning("%d videos have the same bytes as another one", copies)
    return splits


def _rejected(results: Results) -> list[dict[str, Any]]:
    return [
        {"path": video.name, "reason": result.reason, **({} if result.is_final else {"is_final": False})}
        for video, result in results
        if result.reason
    ]


def _warn_of_absent_classes(splits: dict[str, list[SourceVideo]], classes: Sequence[str]) -> None:
    for split, videos in splits.items():
        present = {video.label for video in videos if video.label is not None}
        absent = [label for label in classes if label not in present]
        if present and absent:
            log.warning("%s has no video of %d classes, first %s", split, len(absent), absent[0])


def _check_out(out: Location, state: dict[str, Any]) -> bool:
    """Check whether OUT holds this data set completely.

    Raises:
        ValueError: OUT holds something else.
    """
    names = out.list()
    if not names:
        return False
    if STATE_NAME not in names:
        raise ValueError(
            f"OUT {out}: expected an empty folder or an earlier output, got files but no {STATE_NAME}; "
            "fix: choose a new folder"
        )
    found = json.loads((out / STATE_NAME).read())
    different = sorted(name for name in state if state[name] != found.get(name))
    if different:
        raise ValueError(
            f"OUT {out}: expected the same data set, got one made of {found.get('source')} with another "
            f"{', '.join(different)}; fix: choose a new folder, or remove this one"
        )
    return bool(found.get("complete"))


def _summary(manifest: Manifest) -> dict[str, Any]:
    return {
        "videos": len(manifest.videos),
        "ignored": manifest.ignored,
        "classes": sorted_classes(video.label for video in manifest.videos if video.label is not None),
        "given_splits": sorted({video.split for video in manifest.videos if video.split is not None}),
    }


def _written(out: Location) -> dict[str, Any]:
    splits = {split: open_index(out / split) for split in SPLITS if (out / split / DATASET_NAME).exists()}
    rejected = _entries(out, REJECTED_NAME)
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
        "rejected": len(rejected),
        "reasons": count_reasons(entry["reason"] for entry in rejected),
        "notes": len(_entries(out, NOTES_NAME)),
    }


def _entries(out: Location, name: str) -> list[dict[str, Any]]:
    return read_entries((out / name).read().decode())


def _json(content: Any) -> str:
    return json.dumps(content, indent=1, ensure_ascii=False)
