"""Keys, shuffled order and train/validation split of samples: functions of names, contents and seed."""

import hashlib
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import TypeVar

import torch

from kinemae.data_tools.holdout import Mark, clusters, draw_held_out
from kinemae.data_tools.manifest.videos import SPLITS, SourceVideo
from kinemae.data_tools.randomness import generator

Item = TypeVar("Item")
Digests = Mapping[str, str]

_MAX_KEY = 80  # a tar header holds names of 100 bytes


def safe_keys(names: Sequence[str]) -> list[str]:
    """Unique keys of [a-z0-9_-], independent of the order of the names.

    A key must not hold a dot, because WebDataset ends a key there. Names that would give the same key get a
    hash of the full name appended.
    """
    plain = [_plain(name) for name in names]
    counts = Counter(plain)
    keys = [
        key if counts[key] == 1 and len(key) <= _MAX_KEY else f"{key[:_MAX_KEY]}-{_hash(name)}"
        for key, name in zip(plain, names, strict=True)
    ]
    assert len(set(keys)) == len(keys), "two names share a 64-bit hash"
    return keys


def shuffled(items: Sequence[Item], *, seed: int, purpose: str) -> list[Item]:
    """A seeded permutation."""
    order = torch.randperm(len(items), generator=generator(seed, purpose=purpose))
    return [items[position] for position in order.tolist()]


def assign_splits(
    videos: Sequence[SourceVideo], digests: Digests, *, validation_fraction: float, seed: int
) -> dict[str, list[SourceVideo]]:
    """Videos by split, sorted by name: the source's own splits, else a seeded draw balanced by class.

    In a draw, a cluster of videos of one group or of equal content stays in one split, and validation gets
    its fraction of each class as closely as the clusters allow. A class of two or more clusters keeps one in
    each split if possible (unless the fraction is 0). Clusters without a label go to train.

    Args:
        digests: the content digest of each video by its name.
    """
    splits: dict[str, list[SourceVideo]] = defaultdict(list)
    drawn = []
    for video in sorted(videos, key=lambda video: video.name):
        if video.split is None and validation_fraction > 0:
            drawn.append(video)
        else:
            splits[video.split or "train"].append(video)
    found = clusters([marks_of(video, digests) for video in drawn])
    labels = [video.label for video in drawn]
    held_out = set(
        draw_held_out(found, labels, fraction=validation_fraction, seed=seed, purpose="shard/split")
    )
    for position, video in enumerate(drawn):
        splits["validation" if position in held_out else "train"].append(video)
    return {split: sorted(splits[split], key=lambda video: video.name) for split in SPLITS if splits[split]}


def leaks(splits: Mapping[str, Sequence[SourceVideo]], digests: Digests) -> list[str]:
    """A message for each content and each group that is in several splits; it names two of the videos."""
    first: dict[tuple[str, str], tuple[str, SourceVideo]] = {}
    found: dict[tuple[str, str], str] = {}
    for split, videos in splits.items():
        for video in videos:
            for mark in marks_of(video, digests):
                where, other = first.setdefault(mark, (split, video))
                if where != split and mark not in found:
                    what = f"are of the group {mark[1]!r}" if mark[0] == "group" else "have the same content"
                    found[mark] = f"{other.name} ({where}) and {video.name} ({split}) {what}"
    return list(found.values())


def count_copies(videos: Sequence[SourceVideo], digests: Digests) -> int:
    """Number of whole videos with the content of another one."""
    whole = [video for video in videos if video.start_s is None and video.end_s is None]
    return len(whole) - len({digests.get(video.name) or video.name for video in whole})


def marks_of(video: SourceVideo, digests: Digests) -> list[Mark]:
    """Group and content of a video; videos with an equal mark stay in one split."""
    marks = [("group", video.group or ""), ("content", digests.get(video.name, ""))]
    return [mark for mark in marks if mark[1]]


def _plain(name: str) -> str:
    text = unicodedata.normalize("NFC", name)
    stem = text.rpartition(".")[0] or text
    return re.sub(r"[^a-z0-9_-]+", "_", stem.lower()).strip("_-") or "video"


def _hash(name: str) -> str:
    return hashlib.blake2b(name.encode(), digest_size=8).hexdigest()
