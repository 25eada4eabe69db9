"""Perceptual hashes survive resizing, and the search finds all near duplicates."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from kinemae.data_tools.report.duplicates import distance, near_duplicate_groups
from kinemae.data_tools.report.video_stats import HASH_BITS, STRIP_FRAMES, difference_hash
from tests.seeds import examples


def groups_by_comparing_all(hashes: list[bytes], max_bits: int) -> set[frozenset[int]]:
    """Reference: compare every pair, then join."""
    group = list(range(len(hashes)))
    for one in range(len(hashes)):
        for other in range(one):
            if distance(hashes[one], hashes[other]) <= max_bits:
                old, new = group[one], group[other]
                group = [new if number == old else number for number in group]
    found = [frozenset(place for place, of in enumerate(group) if of == number) for number in set(group)]
    return {members for members in found if len(members) > 1}


@examples(60)
@given(seed=st.integers(0, 2**32), max_bits=st.integers(0, 31))
def test_every_near_pair_is_found_and_no_other(seed: int, max_bits: int) -> None:
    chance = np.random.default_rng(seed)
    families = chance.integers(0, 256, (6, HASH_BITS // 8), dtype=np.uint8)
    bits = np.unpackbits(families[chance.integers(0, 6, 40)], axis=1)
    for row in bits:  # few or many flips
        row[chance.permutation(HASH_BITS)[: chance.integers(0, 20)]] ^= 1
    hashes = [np.packbits(row).tobytes() for row in bits]
    found = {frozenset(group) for group in near_duplicate_groups(hashes, max_bits)}
    assert found == groups_by_comparing_all(hashes, max_bits)


def test_many_equal_hashes_are_one_group() -> None:
    assert near_duplicate_groups([bytes(32)] * 50_000, 16) == [list(range(50_000))]


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_hashes_have_no_groups(count: int) -> None:
    assert near_duplicate_groups([bytes(32)] * count, 16) == []


def test_a_hash_survives_resizing() -> None:
    chance = np.random.default_rng(0)
    coarse = chance.integers(0, 256, (STRIP_FRAMES, 12, 16), dtype=np.uint8)
    pictures = [Image.fromarray(one).resize((320, 240), Image.Resampling.BICUBIC) for one in coarse]
    smaller = [picture.resize((107, 64), Image.Resampling.BILINEAR) for picture in pictures]
    others = [picture.rotate(180) for picture in pictures]
    one, alike, other = map(difference_hash, (pictures, smaller, others))
    assert 8 * len(one) == HASH_BITS
    assert distance(one, alike) <= 8 and distance(one, other) > 64
