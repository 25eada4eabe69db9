"""Keys and order of samples, as pure functions of names and seed."""

import hashlib
import re
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from typing import TypeVar

import torch

from kinemae.data_tools.randomness import generator

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
