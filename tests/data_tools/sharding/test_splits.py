"""Splits are balanced by class and keep groups and copies together."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kinemae.data_tools.holdout import clusters
from kinemae.data_tools.manifest.videos import SourceVideo
from kinemae.data_tools.sharding.splits import assign_splits, count_copies, leaks, marks_of


def videos(counts: dict[str | None, int], split: str | None = None) -> list[SourceVideo]:
    return [
        SourceVideo(path=Path("unused"), name=f"{label}/{number}.mp4", label=label, split=split)
        for label, count in counts.items()
        for number in range(count)
    ]


def grouped(groups: list[tuple[str, str]]) -> list[SourceVideo]:
    """Make a video for each (group, label)."""
    return [
        SourceVideo(path=Path("unused"), name=f"{number}.mp4", label=label, group=group or None)
        for number, (group, label) in enumerate(groups)
    ]


@pytest.mark.parametrize("share, held_out", [(0.2, 2), (0.01, 1), (0.99, 9), (0.0, 0)])
def test_a_split_is_balanced_by_class(share: float, held_out: int):
    splits = assign_splits(videos({"a": 10, "b": 10}), {}, validation_fraction=share, seed=0)
    counts = Counter(video.label for video in splits.get("validation", []))
    assert counts == ({"a": held_out, "b": held_out} if held_out else {})
    assert sum(map(len, splits.values())) == 20


def test_a_class_of_one_video_stays_in_train_and_one_of_two_is_in_both_splits():
    splits = assign_splits(videos({"one": 1, "two": 2}), {}, validation_fraction=0.5, seed=0)
    assert sorted(video.label for video in splits["train"] if video.label) == ["one", "two"]
    assert [video.label for video in splits["validation"]] == ["two"]


def test_videos_without_labels_all_go_to_train():
    splits = assign_splits(videos({None: 5}), {}, validation_fraction=0.5, seed=0)
    assert {split: len(some) for split, some in splits.items()} == {"train": 5}


def test_given_splits_are_kept():
    given_splits = videos({"a": 3}, "train") + videos({"b": 2}, "test") + videos({None: 1}, "unlabelled")
    splits = assign_splits(given_splits, {}, validation_fraction=0.5, seed=0)
    assert {split: len(some) for split, some in splits.items()} == {"train": 3, "test": 2, "unlabelled": 1}


def test_a_split_depends_on_the_seed_and_not_on_the_order_of_the_source():
    some = videos({"a": 30, "b": 30})
    drawn = [assign_splits(order, {}, validation_fraction=0.3, seed=1) for order in (some, some[::-1])]
    assert drawn[0] == drawn[1] != assign_splits(some, {}, validation_fraction=0.3, seed=2)


@given(
    st.lists(st.tuples(st.sampled_from("  pqrstu"), st.sampled_from("ab")), min_size=1, max_size=40),
    st.lists(st.sampled_from(["", *"01234567"]), min_size=40, max_size=40),
    st.floats(0.05, 0.6),
)
def test_groups_and_copies_stay_in_one_split(groups: list[tuple[str, str]], digests: list[str], share: float):
    some = grouped([(group.strip(), label) for group, label in groups])
    contents = {video.name: digest for video, digest in zip(some, digests, strict=False)}
    splits = assign_splits(some, contents, validation_fraction=share, seed=0)
    assert leaks(splits, contents) == []
    assert sorted(video.name for members in splits.values() for video in members) == sorted(
        video.name for video in some
    )
    for label in "ab":  # a class with two clusters is in both splits
        found = clusters([marks_of(video, contents) for video in some])
        labels = [{some[position].label for position in family} for family in found]
        own = [family for family in labels if family == {label}]
        mixed = [family for family in labels if len(family) > 1]
        if len(own) > 1 and not mixed:
            sides = [split for split, members in splits.items() if label in {v.label for v in members}]
            assert sorted(sides) == ["train", "validation"]


def test_groups_of_equal_size_are_split_as_exactly_as_single_videos():
    some = grouped([(f"{label}{number // 5}", label) for label in "ab" for number in range(50)])
    splits = assign_splits(some, {}, validation_fraction=0.2, seed=3)
    assert Counter(video.label for video in splits["validation"]) == {"a": 10, "b": 10}


def test_a_class_of_two_large_groups_is_in_both_splits():
    some = grouped([("one", "a")] * 9 + [("two", "a")] * 8)
    splits = assign_splits(some, {}, validation_fraction=0.1, seed=0)
    assert (len(splits["train"]), len(splits["validation"])) == (9, 8)


def test_leaks_name_both_videos_and_their_splits():
    train, validation = videos({"a": 2}, "train"), videos({"b": 2}, "validation")
    validation[1] = replace(validation[1], group="cam")
    train[1] = replace(train[1], group="cam")
    splits = {"train": train, "validation": validation}
    contents = {"a/0.mp4": "x", "b/0.mp4": "x", "a/1.mp4": "y", "b/1.mp4": "z"}
    assert leaks(splits, contents) == [
        "a/0.mp4 (train) and b/0.mp4 (validation) have the same content",
        "a/1.mp4 (train) and b/1.mp4 (validation) are of the group 'cam'",
    ]
    assert leaks({"train": train + validation}, contents) == []


def test_copies_are_counted_without_parts_of_a_video():
    some = videos({"a": 4})
    contents = dict.fromkeys((video.name for video in some), "x")
    assert count_copies(some, contents) == 3
    assert count_copies([replace(video, start_s=1.0) for video in some], contents) == 0
