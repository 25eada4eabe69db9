"""Keys are safe and unique; the order depends on the seed."""

import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kinemae.data_tools.sharding.splits import safe_keys, shuffled


@given(st.sets(st.text(max_size=120), max_size=20))
def test_keys_are_safe_unique_and_independent_of_order(names: set[str]):
    some_order = sorted(names)
    keys = safe_keys(some_order)
    assert all(re.fullmatch(r"[a-z0-9_-]{1,97}", key) for key in keys)
    assert len(set(keys)) == len(keys)
    assert dict(zip(reversed(some_order), safe_keys(some_order[::-1]), strict=True)) == dict(
        zip(some_order, keys, strict=True)
    )


def test_a_plain_name_keeps_its_words():
    assert safe_keys(["Run Fast/clip.01 (b).MP4", "../up.mkv"]) == ["run_fast_clip_01_b", "up"]


@pytest.mark.parametrize(
    "names",
    [
        ["a/Clip.mp4", "a/clip.mp4"],
        ["a/clip.mp4", "a/clip.avi"],
        ["a/b.mp4", "a_b.mp4"],
        ["\u00e9.mp4", unicodedata.normalize("NFD", "\u00e9.mp4")],
        ["\u6253.mp4", "\u67b6.mp4"],
    ],
)
def test_colliding_names_get_a_hash(names: list[str]):
    one, other = safe_keys(names)
    assert one != other
    assert re.fullmatch(r".*-[0-9a-f]{16}", one)
    assert re.fullmatch(r".*-[0-9a-f]{16}", other)


def test_shuffling_is_a_seeded_permutation():
    once = shuffled(range(50), seed=3, purpose="x")
    assert sorted(once) == list(range(50))
    assert once == shuffled(range(50), seed=3, purpose="x") != shuffled(range(50), seed=3, purpose="y")
