"""`kinemae data shard SOURCE OUT`: any collection of videos to shards with an index.

    OUT/train/ validation/ ...   a data set each, as `kinemae.data_tools.index` describes
    OUT/classes.json             label numbers, for classes=OUT of another run
    OUT/rejected.jsonl           videos that cannot be used, and why; in each split its own as well
    OUT/notes.jsonl              videos that are taken although something is odd, and what
    OUT/shard.json               what this is; written first, so that a stopped run can be continued
    OUT/work/                    only while running: see `kinemae.data_tools.sharding.output`

Equal sources and configs give equal bytes, whatever the number of processes and however often it was stopped.
"""

import argparse
import json
import sys
from typing import Any

from kinemae.data_tools.command import DataError, log, writing_to
from kinemae.data_tools.config import load_config
from kinemae.data_tools.index import DATASET_NAME, REJECTED_NAME, open_index
from kinemae.data_tools.layouts.base import Job
from kinemae.data_tools.manifest.class_map import CLASSES_NAME, class_list, sorted_classes
from kinemae.data_tools.manifest.videos import SPLITS, Listing, SourceVideo
from kinemae.data_tools.sharding.keys import safe_keys
from kinemae.data_tools.sharding.output import Output
from kinemae.data_tools.sharding.plan import Plan, ShardConfig, make_plan
from kinemae.data_tools.sharding.rejects import (
    NOTES_NAME,
    Found,
    check_rejects,
    count_reasons,
    hint_at_retry,
    note_lines,
    rejected_lines,
    warn_of_gaps,
)
from kinemae.data_tools.sharding.split_writer import SplitSample, write_split
from kinemae.data_tools.sharding.splits import Contents, copies, divide, leaks
from kinemae.data_tools.sharding.transcode import forget_rejected, transcode
from kinemae.data_tools.storage.location import Location, location

STATE_NAME = "shard.json"


def run_shard(arguments: argparse.Namespace) -> None:
    """The command: list, store, divide, write."""
    settings = load_config(ShardConfig, None, arguments.overrides)
    root, out = location(arguments.source), location(arguments.out)
    plan = make_plan(root, settings)
    done = _check_out(out, plan.state)
    listed = _listed(plan.listing)
    log.info(
        "%s: %d videos, %d classes, splits: %s, %d other files",
        *(root, listed["videos"], len(listed["classes"])),
        *(", ".join(listed["given_splits"]) or "none given", plan.listing.ignored),
    )
    output = Output(out, settings.work_dir)
    was_complete = done
    if done and settings.retry_rejected and not arguments.dry_run:
        done = not _can_be_read_now(plan, output)
    if done:
        log.info("%s is complete already", out)
        hint_at_retry((out / REJECTED_NAME).read().decode())
        output.remove_work()
    elif not arguments.dry_run:
        with writing_to(out.path or output.work):
            output.write_text(STATE_NAME, _json({**plan.state, "complete": False}))
            if was_complete:
                _remove_indexes(out)
            with output.opened():
                if settings.retry_rejected and not was_complete:
                    forget_rejected(output.work)
                _shard(plan, output)
                output.write_text(STATE_NAME, _json({**plan.state, "complete": True}))
                output.remove_work()
    if arguments.json:
        written = _written(out) if done or not arguments.dry_run else {}
        sys.stdout.write(json.dumps({**listed, **written}) + "\n")


def _can_be_read_now(plan: Plan, output: Output) -> bool:
    """Try the rejected videos of a complete OUT again; if one can be read, OUT has to be made anew."""
    lines = (output.out / REJECTED_NAME).read().decode().splitlines()
    rejected = {json.loads(line)["path"] for line in lines}
    jobs = [job for job in _tasks(plan, output) if job.video.name in rejected]
    if not jobs:
        return False
    with writing_to(output.out.path or output.work), output.opened():
        found = _transcoded(plan, output, jobs)
        readable = sum(bool(result.samples) for _, result in found)
    log.info("%d of %d rejected videos can be read now", readable, len(jobs))
    return readable > 0


def _remove_indexes(out: Location) -> None:
    """Readers of OUT must not find new shards with an old index."""
    for split in SPLITS:
        (out / split / DATASET_NAME).remove()


def _tasks(plan: Plan, output: Output) -> list[Job]:
    settings, videos = plan.settings, plan.listing.videos
    return [
        Job(
            video=video, key=key, folder=output.work, seed=settings.seed, segment_rules=settings.segment_rules
        )
        for video, key in zip(videos, safe_keys([video.name for video in videos]), strict=True)
    ]


def _transcoded(plan: Plan, output: Output, jobs: list[Job]) -> Found:
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
    settings, videos = plan.settings, plan.listing.videos
    found = _transcoded(plan, output, _tasks(plan, output))
    output.write_text(REJECTED_NAME, rejected_lines(found))
    output.write_text(NOTES_NAME, note_lines(found))
    check_rejects(found, settings.max_bad_fraction, str(output.out / REJECTED_NAME))
    readable = {video.name: result for video, result in found if result.samples}
    taken = [video for video in videos if video.name in readable]
    classes = class_list(
        taken,
        plan.given_classes or plan.listing.classes,
        of="the source" if not plan.given_classes else f"classes={settings.classes}",
    )
    output.write_text(CLASSES_NAME, _json(classes))
    contents = {name: result.content for name, result in readable.items()}
    splits = _divide(taken, contents, settings)
    for split, members in splits.items():
        chosen = [
            SplitSample(video=video, stored=stored, content=contents[video.name])
            for video in members
            for stored in readable[video.name].samples
        ]
        write_split(output, split, chosen, classes, plan.record)
        _write_rejected_of(output, split, found)
    warn_of_gaps(splits, classes)


def _divide(
    videos: list[SourceVideo], contents: Contents, settings: ShardConfig
) -> dict[str, list[SourceVideo]]:
    """Splits without leaks.

    Raises:
        DataError: the source's own splits share a video or a group, and the config does not allow that.
    """
    splits = divide(videos, contents, validation_fraction=settings.validation_fraction, seed=settings.seed)
    found = leaks(splits, contents)
    if found:
        message = f"{len(found)} leaks between splits, first {found[0]}"
        if settings.leaks == "error":
            raise DataError(f"{message}: remove one of them, or set leaks=warn")
        log.warning("%s", message)
    repeated = copies(videos, contents)
    if repeated:
        log.warning("%d videos have the same bytes as another one", repeated)
    return splits


def _write_rejected_of(output: Output, split: str, found: Found) -> None:
    of_split = [pair for pair in found if (pair[0].split or "train") == split]
    output.write_text(f"{split}/{REJECTED_NAME}", rejected_lines(of_split))


def _check_out(out: Location, state: dict[str, Any]) -> bool:
    """Whether OUT is this data set and complete.

    Raises:
        ValueError: OUT holds something else.
    """
    names = out.list()
    if not names:
        return False
    if STATE_NAME not in names:
        raise ValueError(f"OUT {out} is not empty and holds no {STATE_NAME}: give a new folder")
    there = json.loads((out / STATE_NAME).read())
    different = sorted(name for name in state if state[name] != there.get(name))
    if different:
        raise ValueError(
            f"OUT {out} holds another data set, made of {there.get('source')} and different in "
            f"{', '.join(different)}: give a new folder, or remove that one"
        )
    return bool(there.get("complete"))


def _listed(listing: Listing) -> dict[str, Any]:
    return {
        "videos": len(listing.videos),
        "ignored": listing.ignored,
        "classes": sorted_classes([video.label for video in listing.videos if video.label is not None]),
        "given_splits": sorted({video.split for video in listing.videos if video.split is not None}),
    }


def _written(out: Location) -> dict[str, Any]:
    there = [split for split in SPLITS if (out / split / DATASET_NAME).exists()]
    splits = {split: open_index(out / split) for split in there}
    rejected = (out / REJECTED_NAME).read().decode()
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
        "rejected": len(rejected.splitlines()),
        "reasons": count_reasons(rejected),
        "notes": len((out / NOTES_NAME).read().decode().splitlines()),
    }


def _json(content: Any) -> str:
    return json.dumps(content, indent=1, ensure_ascii=False)
