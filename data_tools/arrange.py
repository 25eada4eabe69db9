"""Which video goes where: keys, classes, splits and order, as pure functions of names and seed."""

import hashlib
import re
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from typing import TypeVar

import torch

from data_tools.randomness import generator
from data_tools.sources.base import SPLITS, SourceVideo

Item = TypeVar("Item")

_LONGEST_KEY = 80  # a tar header holds names of 100 bytes


def safe_keys(names: Sequence[str]) -> list[str]:
    """Keys of [a-z0-9_-] alone, unique, and each a function of the set of names, not of their order.

    A key must hold no dot: WebDataset takes what follows the first one for the field's name. Names that would
    give the same key, for instance on a disk that ignores case, get a hash of the full name appended.
    """
    plain = [_plain(name) for name in names]
    owners: dict[str, int] = defaultdict(int)
    for key in plain:
        owners[key] += 1
    keys = [
        key if owners[key] == 1 and len(key) <= _LONGEST_KEY else f"{key[:_LONGEST_KEY]}-{_hash(name)}"
        for key, name in zip(plain, names, strict=True)
    ]
    assert len(set(keys)) == len(keys), "two names share a 64-bit hash"
    return keys


def sorted_classes(labels: Sequence[str]) -> list[str]:
    """Distinct labels in order: as numbers where all are integers, else as text."""
    distinct = sorted(set(labels))
    if all(re.fullmatch(r"-?[0-9]+", label) for label in distinct):
        return sorted(distinct, key=int)
    return distinct


def divide(
    videos: Sequence[SourceVideo], *, validation_share: float, seed: int
) -> dict[str, list[SourceVideo]]:
    """Videos by split, sorted by name: as the source says, else by a seeded draw that is balanced by class.

    In a draw every class of two or more videos keeps at least one on either side (unless the share is 0).
    Videos without labels all go to train.
    """
    splits: dict[str, list[SourceVideo]] = defaultdict(list)
    by_class: dict[str, list[SourceVideo]] = defaultdict(list)
    for video in sorted(videos, key=lambda video: video.name):
        if video.split is None and video.label is not None and validation_share > 0:
            by_class[video.label].append(video)
        else:
            splits[video.split or "train"].append(video)
    for label, members in by_class.items():
        chosen = shuffled(members, seed=seed, purpose=f"shard/split/{label}")
        held_out = min(max(round(len(members) * validation_share), 1), len(members) - 1)
        splits["validation"] += chosen[:held_out]
        splits["train"] += chosen[held_out:]
    return {split: sorted(splits[split], key=lambda video: video.name) for split in SPLITS if splits[split]}


def shuffled(items: Sequence[Item], *, seed: int, purpose: str) -> list[Item]:
    """A seeded permutation."""
    order = torch.randperm(len(items), generator=generator(seed, purpose=purpose))
    return [items[position] for position in order.tolist()]


def _plain(name: str) -> str:
    text = unicodedata.normalize("NFC", name)
    stem = text.rpartition(".")[0] or text
    return re.sub(r"[^a-z0-9_-]+", "_", stem.lower()).strip("_-") or "video"


def _hash(name: str) -> str:
    return hashlib.blake2b(name.encode(), digest_size=8).hexdigest()
