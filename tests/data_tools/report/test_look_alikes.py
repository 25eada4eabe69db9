"""Hashes stay alike when a video is encoded anew, and all pairs that are near are found."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from kinemae.data_tools.report.duplicates import distance, most_bits_found, near_groups
from kinemae.data_tools.report.video_stats import HASH_BITS, PICTURES, difference_hash
from tests.seeds import examples


def groups_by_comparing_all(hashes: list[bytes], most_bits: int) -> set[frozenset[int]]:
    """The slow way: every pair compared, then joined."""
    group = list(range(len(hashes)))
    for one in range(len(hashes)):
        for other in range(one):
            if distance(hashes[one], hashes[other]) <= most_bits:
                old, new = group[one], group[other]
                group = [new if number == old else number for number in group]
    found = [frozenset(place for place, of in enumerate(group) if of == number) for number in set(group)]
    return {members for members in found if len(members) > 1}


@examples(60)
@given(seed=st.integers(0, 2**32), most_bits=st.integers(0, most_bits_found(HASH_BITS)))
def test_every_near_pair_is_found_and_no_other(seed: int, most_bits: int) -> None:
    chance = np.random.default_rng(seed)
    families = chance.integers(0, 256, (6, HASH_BITS // 8), dtype=np.uint8)
    bits = np.unpackbits(families[chance.integers(0, 6, 40)], axis=1)
    for row in bits:  # few or many flips, sometimes one in every band
        places = (
            chance.permutation(HASH_BITS // 16) * 16
            if chance.random() < 0.5
            else chance.permutation(HASH_BITS)
        )
        row[places[: chance.integers(0, 20)]] ^= 1
    hashes = [np.packbits(row).tobytes() for row in bits]
    found = {frozenset(group) for group in near_groups(hashes, most_bits)}
    assert found == groups_by_comparing_all(hashes, most_bits)


def test_many_equal_hashes_are_one_group_at_once() -> None:
    assert near_groups([bytes(32)] * 50_000, 16) == [list(range(50_000))]


@pytest.mark.parametrize("count", [0, 1])
def test_nothing_is_like_itself(count: int) -> None:
    assert near_groups([bytes(32)] * count, 16) == []


def test_a_hash_is_of_the_size_that_the_bands_divide_and_survives_resizing() -> None:
    chance = np.random.default_rng(0)
    coarse = chance.integers(0, 256, (PICTURES, 12, 16), dtype=np.uint8)
    pictures = [Image.fromarray(one).resize((320, 240), Image.Resampling.BICUBIC) for one in coarse]
    smaller = [picture.resize((107, 64), Image.Resampling.BILINEAR) for picture in pictures]
    others = [picture.rotate(180) for picture in pictures]
    one, alike, other = map(difference_hash, (pictures, smaller, others))
    assert 8 * len(one) == HASH_BITS
    assert distance(one, alike) <= 8 and distance(one, other) > 64
