"""Keys are safe and unique, splits balanced, and all of it a function of names and seed."""

import re
import unicodedata
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_tools.arrange import divide, safe_keys, shuffled, sorted_classes
from data_tools.sources.base import SourceVideo


def videos(counts: dict[str | None, int], split: str | None = None) -> list[SourceVideo]:
    return [
        SourceVideo(path=Path("unused"), name=f"{label}/{number}.mp4", label=label, split=split)
        for label, count in counts.items()
        for number in range(count)
    ]


@settings(deadline=None)
@given(st.sets(st.text(max_size=120), max_size=20))
def test_keys_of_any_names_are_safe_unique_and_indifferent_to_order(names: set[str]):
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
def test_names_that_would_collide_get_a_hash(names: list[str]):
    one, other = safe_keys(names)
    assert one != other
    assert re.fullmatch(r".*-[0-9a-f]{16}", one)
    assert re.fullmatch(r".*-[0-9a-f]{16}", other)


def test_classes_are_sorted_as_numbers_where_all_are():
    assert sorted_classes(["10", "9", "10", "-1"]) == ["-1", "9", "10"]
    assert sorted_classes(["10", "9", "b"]) == ["10", "9", "b"]
    assert sorted_classes([]) == []


@pytest.mark.parametrize("share, held_out", [(0.2, 2), (0.01, 1), (0.99, 9), (0.0, 0)])
def test_a_split_is_balanced_by_class(share: float, held_out: int):
    splits = divide(videos({"a": 10, "b": 10}), validation_share=share, seed=0)
    counts = Counter(video.label for video in splits.get("validation", []))
    assert counts == ({"a": held_out, "b": held_out} if held_out else {})
    assert sum(map(len, splits.values())) == 20


def test_a_class_of_one_stays_in_train_and_one_of_two_is_on_both_sides():
    splits = divide(videos({"one": 1, "two": 2}), validation_share=0.5, seed=0)
    assert sorted(video.label for video in splits["train"] if video.label) == ["one", "two"]
    assert [video.label for video in splits["validation"]] == ["two"]


def test_videos_without_labels_all_go_to_train():
    assert {
        split: len(some) for split, some in divide(videos({None: 5}), validation_share=0.5, seed=0).items()
    } == {"train": 5}


def test_given_splits_are_kept():
    given_splits = videos({"a": 3}, "train") + videos({"b": 2}, "test") + videos({None: 1}, "unlabelled")
    splits = divide(given_splits, validation_share=0.5, seed=0)
    assert {split: len(some) for split, some in splits.items()} == {"train": 3, "test": 2, "unlabelled": 1}


def test_a_split_depends_on_the_seed_and_not_on_the_order_of_the_source():
    some = videos({"a": 30, "b": 30})
    assert divide(some, validation_share=0.3, seed=1) == divide(some[::-1], validation_share=0.3, seed=1)
    assert divide(some, validation_share=0.3, seed=1) != divide(some, validation_share=0.3, seed=2)


def test_shuffling_is_a_seeded_permutation():
    once = shuffled(range(50), seed=3, purpose="x")
    assert sorted(once) == list(range(50))
    assert once == shuffled(range(50), seed=3, purpose="x") != shuffled(range(50), seed=3, purpose="y")
