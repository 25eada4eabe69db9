"""What somebody should know first: a short list at the top of the page, the worst first."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kinemae.data_tools.report.collection import Collection
from kinemae.data_tools.report.duplicates import Leak

_HELD_OUT = ("validation", "test")
_UNEVEN = 10.0  # largest class to smallest


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line: how bad ("bad", "look" or "good"), what, and the section that shows it."""

    level: str
    text: str
    section: str


def findings_of_splits(
    collection: Collection, content: Sequence[Leak], groups: Sequence[Leak]
) -> list[Finding]:
    """What is shared between splits; nothing is said of what the index does not know."""
    if len(collection.splits) < 2:
        return []
    found = []
    for what, column, leaks in (("files", "content", content), ("groups", "group", groups)):
        if not leaks and collection.says(column):
            found.append(
                Finding(level="good", text=f"none of the {what} is in two splits", section="leakage")
            )
        elif leaks:
            level = "bad" if _touches_held_out(collection, leaks) else "look"
            first = collection.sample(leaks[0].places[0]).name
            found.append(
                Finding(
                    level=level,
                    text=f"{what} in more than one split: {len(leaks):,}, first that of {first}; scores on "
                    "the held-out split will look better than they are",
                    section="leakage",
                )
            )
    return found


def findings_of_classes(collection: Collection, names: Sequence[str], counts_SX: np.ndarray) -> list[Finding]:
    """Classes that a split lacks, and very uneven ones."""
    found = []
    for split, counts_X in zip(collection.splits, counts_SX, strict=True):
        empty = np.flatnonzero(counts_X == 0)
        if counts_X.any() and len(empty):
            where = f"{split} has" if split else "there is"
            text = f"{where} no video of {_count(len(empty), 'class', 'classes')}, first {names[empty[0]]}"
            found.append(Finding(level="look", text=text, section="classes"))
    totals_X = counts_SX.sum(axis=0)
    if len(names) and totals_X.min() and totals_X.max() / totals_X.min() >= _UNEVEN:
        most, least = int(totals_X.argmax()), int(totals_X.argmin())
        text = (
            f"classes are uneven: {totals_X[most]:,} videos of {names[most]}, "
            f"{totals_X[least]:,} of {names[least]}"
        )
        found.append(Finding(level="look", text=text, section="classes"))
    return found


def counted(count: int, some: str, none: str, *, section: str, level: str = "look") -> Finding:
    """One line for a count: what is said where there are some, and what where there is none."""
    return Finding(level=level if count else "good", text=some if count else none, section=section)


def worst_first(findings: Sequence[Finding]) -> list[Finding]:
    """Sorted by level, otherwise as they came."""
    return sorted(findings, key=lambda finding: ("bad", "look", "good").index(finding.level))


def _touches_held_out(collection: Collection, leaks: Sequence[Leak]) -> bool:
    splits = {collection.splits[collection.locate(place)[0]] for leak in leaks for place in leak.places}
    return any(split in _HELD_OUT for split in splits)


def _count(count: int, one: str, more: str) -> str:
    return f"{count:,} {one if count == 1 else more}"
