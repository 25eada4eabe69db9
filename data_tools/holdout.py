"""Held-out parts of a data set: whole groups, with a fraction of each class, as a function of the seed."""

from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence

import numpy as np
import torch

from kinemae.data_tools.command import DataError
from kinemae.data_tools.index import ShardIndex
from kinemae.data_tools.randomness import generator

Mark = tuple[str, str]  # kind and value: samples with the same mark stay together


def hold_out(
    index: ShardIndex, *, fraction: float, seed: int, key: str, labels: Sequence[Hashable] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Divide a data set into samples for training and samples for validation.

    Samples of one group, of equal content or of one source file stay together. They form clusters.
    The held-out fraction of each class is as close to `fraction` as the clusters allow. A class with two or
    more clusters is in both parts if possible.

    Args:
        key: config key and folder of the data, for messages.
        labels: the class of each sample; by default the column "label". For numbers, pass their quantiles.

    Returns:
        The positions of both parts, ascending; `index.view` makes data sets of them.

    Raises:
        DataError: all samples belong together, or those of each class do.
    """
    groups, contents, names = (index.arrow_column(name).to_pylist() for name in ("group", "content", "name"))
    marks = [
        [mark for mark in zip(("group", "content", "name"), values, strict=True) if mark[1]]
        for values in zip(groups, contents, names, strict=True)
    ]
    found = clusters(marks)
    if len(found) < 2:
        raise DataError(
            f"{key}: expected samples of two or more groups, to hold some out for validation, got "
            f"{len(index)} of one group ({groups[0] or names[0]!r}); fix: give a validation set"
        )
    labels = index.column("label").tolist() if labels is None else labels
    held_out = draw_held_out(found, labels, fraction=fraction, seed=seed, purpose="hold out")
    if not held_out:
        raise DataError(
            f"{key}: expected a class with samples of two or more groups, to hold some out for validation, "
            "got one group for each class; fix: give a validation set"
        )
    is_held_out_R = np.isin(np.arange(len(index)), held_out)
    return np.flatnonzero(~is_held_out_R), np.flatnonzero(is_held_out_R)


def clusters(marks: Sequence[Sequence[Mark]]) -> list[list[int]]:
    """Group the positions that share a mark, directly or through others, in the given order."""
    first: dict[Mark, int] = {}
    parent = list(range(len(marks)))

    def root(member: int) -> int:
        while parent[member] != member:
            parent[member] = parent[parent[member]]
            member = parent[member]
        return member

    for position, own in enumerate(marks):
        for mark in own:
            one, other = sorted((root(position), root(first.setdefault(mark, position))))
            parent[other] = one
    found: dict[int, list[int]] = defaultdict(list)
    for position in range(len(marks)):
        found[root(position)].append(position)
    return list(found.values())


def draw_held_out(
    found: Sequence[list[int]],
    labels: Sequence[Hashable | None],
    *,
    fraction: float,
    seed: int,
    purpose: str,
) -> list[int]:
    """Draw clusters to hold out; return their positions.

    Args:
        found: the clusters, positions in `labels`.
        labels: the class of each position; a cluster of positions with None is never held out.
    """
    shuffled = torch.randperm(len(found), generator=generator(seed, purpose=purpose)).tolist()
    order = sorted((found[number] for number in shuffled), key=len, reverse=True)  # small ones fill the rest
    counts = [Counter(labels[each] for each in cluster if labels[each] is not None) for cluster in order]
    total: Counter[Hashable] = Counter()
    spread: Counter[Hashable] = Counter()
    for count in counts:
        total.update(count)
        spread.update(set(count))
    missing = {
        label: min(max(round(total[label] * fraction), 1), total[label] - 1) if spread[label] > 1 else 0
        for label in total
    }
    left = Counter(spread)  # clusters of a class that are not held out yet
    is_held_out = []
    for count in counts:
        brings_closer = sum(abs(missing[label]) - abs(missing[label] - count[label]) for label in count) > 0
        takes_the_last = any(left[label] == 1 for label in count)
        is_held_out.append(brings_closer and not takes_the_last)
        if is_held_out[-1]:
            for label in count:
                missing[label] -= count[label]
                left[label] -= 1
    if fraction:
        _hold_out_missing(is_held_out, [set(count) for count in counts], left, spread)
    chosen = zip(order, is_held_out, strict=True)
    return [position for cluster, is_out in chosen if is_out for position in cluster]


def _hold_out_missing(
    is_held_out: list[bool],
    classes: Sequence[set[Hashable]],
    left: Counter[Hashable],
    spread: Counter[Hashable],
) -> None:
    """Hold out a small cluster of each class whose clusters are all larger than the held-out fraction."""
    for number in reversed(range(len(is_held_out))):
        own = classes[number]
        is_missing = any(left[label] == spread[label] > 1 for label in own)
        if is_missing and not is_held_out[number] and all(left[label] > 1 for label in own):
            is_held_out[number] = True
            left.subtract(own)
