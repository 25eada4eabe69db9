"""Warn about unread parts of a WebDataset: members without a rule, samples without a video."""

from collections import Counter
from collections.abc import Mapping, Sequence

from kinemae.data_tools.command import log
from kinemae.data_tools.indexing.field_rules import Rules, Shelf
from kinemae.data_tools.indexing.shard_list import ForeignShard


def warn_of_unread(unread: Sequence[Mapping[str, int]], rules: Rules) -> None:
    """Log how many members no rule reads, where "auto" found no label.

    Args:
        unread: numbers of such members of each shard, by their last ending.
    """
    total: Counter[str] = Counter()
    for counts in unread:
        total.update(counts)
    if rules.label == "absent" and total:
        key = f"{rules.keys}label"
        log.warning(
            "no labels were found; members that no rule reads: %s; %s=json.FIELD, %s=txt or %s=NAME.cls "
            "takes labels from them, %s=none takes no labels",
            *(", ".join(f"{count} .{ending}" for ending, count in sorted(total.items())), key, key, key, key),
        )


def warn_of_left_out(shards: Sequence[ForeignShard], shelves: Sequence[Shelf]) -> None:
    """Log the number of skipped samples and the reason of the first one."""
    left_out = [
        f"{shard.name}, {key}: {why}"
        for shard, shelf in zip(shards, shelves, strict=True)
        for key, why in shelf.left_out.items()
    ]
    if left_out:
        log.warning("%d samples are left out, first %s", len(left_out), left_out[0])
