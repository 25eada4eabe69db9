"""Checks of a data set: a summary at the top of the page, problems first."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kinemae.data_tools.leaks import Leak
from kinemae.data_tools.report.collection import Collection

_HELD_OUT = ("validation", "test")
_MAX_IMBALANCE = 10.0  # largest class to smallest
LEVELS = ("problem", "warning", "passed")


@dataclass(frozen=True, kw_only=True)
class Check:
    """Result of a check: its level, a sentence, and the section of the page with the details."""

    level: str
    text: str
    section: str


def run_checks(
    content: dict[str, Any], collection: Collection, names: Sequence[str], counts_SX: np.ndarray
) -> list[Check]:
    """Check the gathered content of a page; problems come first."""
    checks = [
        *_check_videos(content),
        *_check_files(content, collection),
        *_check_splits(collection, content["leaks"]),
        *_check_classes(collection, names, counts_SX),
    ]
    return sorted(checks, key=lambda check: LEVELS.index(check.level))


def _check_videos(content: dict[str, Any]) -> list[Check]:
    videos = f"{content['sampled']:,} decoded videos"
    unreadable, static, blank = (len(content[name]) for name in ("unreadable", "static", "blank"))
    groups, mixed = content["near_duplicate_count"], content["near_duplicate_mixed"]
    compared = f"{content['total']:,} videos" if content["has_hashes"] else videos
    in_splits = f", {mixed:,} of them in more than one split" if mixed else ""
    similar = f"near duplicates: {groups:,} {'group' if groups == 1 else 'groups'} of videos{in_splits}"
    return [
        _counted(
            unreadable,
            f"{unreadable:,} of {videos} are unreadable",
            f"all {videos} are readable",
            section="unreadable",
            level="problem",
        ),
        _counted(groups, similar, f"no near duplicates among {compared}", section="alike"),
        _counted(
            static, f"{static:,} of {videos} are static", f"none of {videos} is static", section="static"
        ),
        _counted(blank, f"{blank:,} of {videos} are blank", f"none of {videos} is blank", section="static"),
    ]


def _check_files(content: dict[str, Any], collection: Collection) -> list[Check]:
    rejected, notes, duplicates = len(content["rejected"]), content["notes"], content["exact_count"]
    reason = f", most frequent reason: {content['reasons'][0][0]}" if rejected else ""
    some = f"files rejected while sharding: {rejected:,}{reason}"
    checks = [_counted(rejected, some, "no file was rejected while sharding", section="rejected")]
    if notes:
        text = f"files with notes: {len(notes):,}, first: {notes[0][1]}"
        checks.append(Check(level="warning", text=text, section="notes"))
    if collection.has_values("content"):
        some = f"groups of exact duplicates: {duplicates:,}"
        return [*checks, _counted(duplicates, some, "no exact duplicates", section="exact")]
    unknown = "the index has no digests of the original files: exact duplicates cannot be found"
    return [*checks, Check(level="warning", text=unknown, section="exact")]


def _check_splits(collection: Collection, leaks: dict[str, Sequence[Leak]]) -> list[Check]:
    """Check for leaks in columns that have values."""
    if len(collection.splits) < 2:
        return []
    checks = []
    for what, column in (("file", "content"), ("group", "group")):
        found = leaks[column]
        if found:
            splits = {collection.splits[number] for leak in found for number in leak.first}
            level = "problem" if splits & set(_HELD_OUT) else "warning"
            first = collection.sample(collection.first_rows(found[0])[0]).name
            text = (
                f"{what}s in more than one split: {len(found):,}, first that of {first}; scores on the "
                "held-out split are too high"
            )
            checks.append(Check(level=level, text=text, section="leakage"))
        elif collection.has_values(column):
            checks.append(Check(level="passed", text=f"no {what} is in two splits", section="leakage"))
    return checks


def _check_classes(collection: Collection, names: Sequence[str], counts_SX: np.ndarray) -> list[Check]:
    checks = []
    for split, counts_X in zip(collection.splits, counts_SX, strict=True):
        empty = np.flatnonzero(counts_X == 0)
        if counts_X.any() and len(empty):
            classes = f"{len(empty):,} {'class' if len(empty) == 1 else 'classes'}"
            text = f"{split or collection.name} has no video of {classes}, first {names[empty[0]]}"
            checks.append(Check(level="warning", text=text, section="classes"))
    totals_X = counts_SX.sum(axis=0)
    if len(names) and totals_X.min() and totals_X.max() / totals_X.min() >= _MAX_IMBALANCE:
        most, least = int(totals_X.argmax()), int(totals_X.argmin())
        text = (
            f"classes are imbalanced: {totals_X[most]:,} videos of {names[most]}, "
            f"{totals_X[least]:,} of {names[least]}"
        )
        checks.append(Check(level="warning", text=text, section="classes"))
    return checks


def _counted(count: int, some: str, none: str, *, section: str, level: str = "warning") -> Check:
    return Check(level=level if count else "passed", text=some if count else none, section=section)
