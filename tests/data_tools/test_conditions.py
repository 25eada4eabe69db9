"""Conditions over columns: the rows that they select, and errors."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kinemae.data_tools.command import DataError
from kinemae.data_tools.conditions import Condition, select_rows
from kinemae.data_tools.index import ShardIndex
from tests.label_index import CLASSES, label_index, rich_index

Truth = bool | None


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> ShardIndex:
    return rich_index(tmp_path_factory.mktemp("index"))


def rows(index: ShardIndex) -> list[dict[str, Any]]:
    names = ["key", "label", "frames", "duration_s", *index.extra]
    return [
        dict(zip(names, values, strict=True))
        for values in zip(*(index.arrow_column(name).to_pylist() for name in names), strict=True)
    ]


def selected(index: ShardIndex, text: str) -> list[str]:
    return select_rows(index, text).column("key").tolist()


@pytest.mark.parametrize(
    "text, matches",
    [
        ("note > 2", lambda row: row["note"] is not None and row["note"] > 2),
        ("not note > 2", lambda row: row["note"] is not None and row["note"] <= 2),
        ("note is None or note == 0", lambda row: row["note"] in (None, 0)),
        (
            "note is not None and verb == 'open'",
            lambda row: row["note"] is not None and row["verb"] == "open",
        ),
        ("1 < grade <= 3", lambda row: 1 < row["grade"] <= 3),
        ("grade in [1, 2.0, 7] and grade not in (2,)", lambda row: row["grade"] == 1),
        ("second not in ['a']", lambda row: row["second"] == "b"),
        ("-speed * 2 + dx / 4 < frames - 50", lambda row: -row["speed"] * 2 + row["dx"] / 4 < -10),
        ("grade / 2 > 0.9", lambda row: row["grade"] > 1),
        ("label == 'left' or 'still' == label", lambda row: CLASSES[row["label"]] in ("left", "still")),
        ("label not in ['left']", lambda row: row["label"] != 0),
        ("label >= 1", lambda row: row["label"] >= 1),
        ("'round' in tags and 'blue' not in tags", lambda row: row["tags"] in ("red;round", "round")),
        (
            "tags.startswith('red') or key.endswith('3')",
            lambda row: row["tags"][:3] == "red" or row["key"][-1] == "3",
        ),
        ("verb != size", lambda row: True),
        ("True and not False", lambda row: True),
    ],
)
def test_the_rows_that_match_are_selected(
    index: ShardIndex, text: str, matches: Callable[[dict[str, Any]], bool]
) -> None:
    assert selected(index, text) == [row["key"] for row in rows(index) if matches(row)]


def test_the_split_is_the_name_of_the_folder_unless_a_column_has_this_name(tmp_path: Path) -> None:
    index = label_index(tmp_path / "train", labels=[0, 1])
    assert selected(index, "split == 'train' and label == 'left'") == ["key-0"]
    for text in ("split in ['train']", "split is not None", "split.startswith('t')", "'rai' in split"):
        assert selected(index, text) == ["key-0", "key-1"]
    with pytest.raises(DataError, match="expected at least one sample"):
        selected(index, "split != 'train'")
    assert selected(label_index(tmp_path / "x", labels=[0, 1], extra={"split": ["a", "b"]}), "split == 'b'")


@pytest.mark.parametrize("text", ["id > 0.5", "id + 1 > 0", "id in [1, 2.5]", f"id == -{2**53 + 1}"])
def test_large_integers_are_compared_with_integers_only(tmp_path: Path, text: str) -> None:
    index = label_index(tmp_path, labels=[0, 1], extra={"id": [2**53 + 1, 2**53 + 2]})
    assert selected(index, f"id == {2**53 + 1}") == ["key-0"]
    with pytest.raises(ValueError, match=r"data.where: expected .*\n?.*fix: compare integers beyond 2\*\*53"):
        selected(index, text)


def test_an_unlabelled_sample_has_a_missing_label(tmp_path: Path) -> None:
    index = label_index(tmp_path, labels=[0, -1, 2, -1])
    assert selected(index, "label is None") == ["key-1", "key-3"]
    assert selected(index, "label != 'left'") == ["key-2"]


def conditions() -> st.SearchStrategy[tuple[str, Callable[[dict[str, Any]], Truth]]]:
    """Conditions with a plain reference in three-valued logic."""
    signs = {"<": float.__lt__, ">=": float.__ge__, "==": float.__eq__, "!=": float.__ne__}

    def leaf(name: str, sign: str, value: float) -> tuple[str, Callable[[dict[str, Any]], Truth]]:
        return (
            f"{name} {sign} {value}",
            lambda row: None if row[name] is None else bool(signs[sign](float(row[name]), value)),
        )

    def negated(one: Any) -> Any:
        return f"not ({one[0]})", lambda row: None if (found := one[1](row)) is None else not found

    def joined(one: Any, word: str, other: Any) -> Any:
        decisive = word == "or"  # one side with this value decides

        def value(row: dict[str, Any]) -> Truth:
            sides = (one[1](row), other[1](row))
            return decisive if decisive in sides else None if None in sides else not decisive

        return f"({one[0]}) {word} ({other[0]})", value

    leaves = st.builds(
        leaf,
        st.sampled_from(["note", "grade", "speed"]),
        st.sampled_from([*signs]),
        st.sampled_from([0.0, 1.5, 2.0]),
    )
    return st.recursive(
        leaves,
        lambda inner: (
            st.builds(negated, inner) | st.builds(joined, inner, st.sampled_from(["and", "or"]), inner)
        ),
        max_leaves=6,
    )


@settings(max_examples=60, deadline=None)
@given(condition=conditions())
def test_missing_values_follow_three_valued_logic(index: ShardIndex, condition: Any) -> None:
    text, reference = condition
    mask_R = Condition(text, key="where").mask(index)
    assert mask_R.tolist() == [reference(row) is True for row in rows(index)]


def test_removed_rows_and_conditions_add_up_and_have_their_own_identity(index: ShardIndex) -> None:
    part = select_rows(index, "grade > 1")
    both = select_rows(part, "verb == 'open'")
    assert both.column("key").tolist() == selected(index, "grade > 1 and verb == 'open'")
    assert len({index.identity, part.identity, both.identity}) == 3
    assert select_rows(index, None) is index


@pytest.mark.parametrize(
    "text, message",
    [
        ("nota > 1", r"data.where: expected columns of .*, got 'nota'; did you mean 'note'\? fix: use "),
        ("label == 'lefd'", r"got 'lefd'; did you mean 'left'\? fix: use left, right, still"),
        ("grade >", r"data.where: expected a condition over .*, got 'grade >' \(invalid syntax\); fix"),
        ("", "got '' "),
        ("grade", "got a number: 'grade'; fix: write a condition"),
        ("verb + 1 > 2", "got a text: 'verb'; fix: write a number"),
        ("grade > 'a'", """got a number and a text in "grade > 'a'"; fix: compare two of a kind"""),
        ("grade in [1, 'a']", r"got `in \[1, 'a'\]`; fix: list constants, each a number"),
        ("grade in speed", r"got `in speed`; fix: write `in \['one', 'two'\]`"),
        ("note == None", "got 'note == None'; fix: write `is None`"),
        ("grade is 3", "got 'grade is 3'; fix: write `is None`"),
        ("__import__('os').system('true')", "got .*import"),
        ("[x for x in key]", "got "),
        ("key.lower() == 'a'", r"got 'key.lower\(\)'"),
        ("grade ** 9 > 1", r"got 'grade \*\* 9'"),
        ("grade < " + "9" * 40, "with a number that is too large"),
        ("(" * 4000 + "1" + ")" * 4000 + " > grade", "got '"),
        ("-" * 9000 + "1 > grade", "nested too deeply|too many|too complex"),
        ("grade > 1 " * 2000, "more than 10000 characters"),
    ],
)  # fmt: skip
def test_a_wrong_condition_says_what_to_fix(index: ShardIndex, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        select_rows(index, text)


def test_a_condition_that_no_sample_matches_is_an_error(index: ShardIndex) -> None:
    with pytest.raises(
        DataError, match=r"data.where=grade > 9: expected at least one sample of .*, got none of 24"
    ):
        select_rows(index, "grade > 9")
