"""Index of a split from its finished windows, and the check that no video is in two splits."""

from collections import defaultdict
from dataclasses import replace

from kinemae.data_tools.command import log
from kinemae.data_tools.index import COLUMNS, EXTRA_TYPES, IndexWriter, Sample
from kinemae.data_tools.manifest.class_map import warn_of_absent_classes
from kinemae.data_tools.sharding.output import Output
from kinemae.data_tools.sharding.plan import Plan, check_leaks
from kinemae.data_tools.sharding.splits import count_copies, leaks
from kinemae.data_tools.sharding.windows import WindowLog

_LONG_S = 60
MADE_BY = "data_tools shard"
_TYPES = dict(zip((str, int, float), EXTRA_TYPES, strict=True))


def write_split_index(split: str, plan: Plan, output: Output, windows: WindowLog) -> None:
    """Write the index of a split, window by window."""
    made_by = {"command": MADE_BY, "split": split, "config": plan.record}
    extra = {name: _TYPES[kind] for name, kind in plan.columns.items()}
    present: set[int] = set()
    long_s: list[float] = []
    with IndexWriter(output.out / split, classes=plan.classes, made_by=made_by, extra=extra) as writer:
        for window in windows.windows(split):
            samples = [Sample(**{name: row[name] for name in COLUMNS.names}) for row in window.rows]
            writer.add_samples(samples, {name: [row.get(name) for row in window.rows] for name in extra})
            shards = window.shards
            writer.add_shards([replace(one, name=output.shard_reference(split, one.name)) for one in shards])
            present |= {sample.label for sample in samples}
            long_s += [sample.duration_s for sample in samples if sample.duration_s > _LONG_S]
    state = windows.splits[split]
    log.info("%s: %d videos in %d shards", output.out / split, state.samples, state.shards)
    if long_s:
        log.warning(
            "%s: %d samples are longer than %d s, up to %.0f s: a clip reads a whole sample, and each has "
            "one clip per epoch; fix: set segment_s=10, or list parts with start_s and end_s",
            *(output.out / split, len(long_s), _LONG_S, max(long_s)),
        )
    if plan.part is None:  # else the merge warns
        warn_of_absent_classes(split, plan.classes, present)


def check_contents(plan: Plan, windows: WindowLog) -> None:
    """Check that no two splits have a video with the same bytes; warn of copies.

    Raises:
        DataError: there is one, and the config does not allow it.
    """
    digests = {name: content for window in windows.windows() for name, content in window.contents.items()}
    members = defaultdict(list)
    for video, split in zip(plan.manifest.videos, plan.splits, strict=True):
        if video.name in digests:
            members[split].append(video)
    check_leaks(leaks(members, digests), plan.settings)
    copies = count_copies([video for some in members.values() for video in some], digests)
    if copies:
        log.warning("%d videos have the same bytes as another one", copies)
