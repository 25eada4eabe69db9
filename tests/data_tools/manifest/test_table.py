"""Tables of videos, csv and jsonl: columns, their types, and errors that state the line."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kinemae.data_tools.command import DataError
from kinemae.data_tools.components import Component, build_component
from kinemae.data_tools.manifest.table import Row, parse_column, unify_columns
from kinemae.data_tools.manifest.videos import Manifest, SourceVideo
from kinemae.data_tools.sources.base import Source
from kinemae.data_tools.sources.csv import CsvSource
from kinemae.data_tools.sources.jsonl import JsonlSource


def listing(tmp_path: Path, text: str, **args: Any) -> Manifest:
    """List the videos of a csv or jsonl text, without files for them."""
    name = "jsonl" if text.startswith("{") else "csv"
    path = tmp_path / f"list.{name}"
    path.write_bytes(text.encode())
    args = {"max_missing_fraction": 1.0, **args}
    return build_component("kinemae.data_tools.sources", Component(name=name, args=args), Source).list_videos(
        path
    )


def videos(tmp_path: Path, text: str, **args: Any) -> tuple[SourceVideo, ...]:
    return listing(tmp_path, text, **args).videos


def facts(found: tuple[SourceVideo, ...]) -> list[tuple[str, str | None, str | None]]:
    return [(video.name, video.label, video.split) for video in found]


def test_paths_are_relative_to_the_table(tmp_path: Path):
    found = videos(tmp_path, '\ufeffpath,label\r\n"a, b/1.mp4",run\r\n\r\n../2.mp4, walk \r\n')
    assert facts(found) == [("a, b/1.mp4", "run", None), ("../2.mp4", "walk", None)]
    assert found[0].path == tmp_path / "a, b" / "1.mp4"


def test_the_argument_videos_sets_the_base_of_paths(tmp_path: Path):
    (tmp_path / "clips").mkdir()
    assert videos(tmp_path, "path\n1.mp4\n", videos="clips")[0].path == tmp_path / "clips" / "1.mp4"
    with pytest.raises(ValueError, match=r"source.args.videos must be a folder, got .*clps"):
        videos(tmp_path, "path\n1.mp4\n", videos="clps")


def test_names_may_hold_spaces_quotes_unicode_and_line_ends(tmp_path: Path):
    found = videos(tmp_path, 'path,label\n"a ""b""\nc.mp4",\u00fcben\n\u6253 \u7403.mp4,x\n')
    assert facts(found) == [('a "b"\nc.mp4', "\u00fcben", None), ("\u6253 \u7403.mp4", "x", None)]


def test_paths_may_be_urls(tmp_path: Path):
    [video] = videos(tmp_path, '{"path": "s3://bucket/a b/c.mp4"}')
    assert (video.url, str(video.place)) == ("s3://bucket/a b/c.mp4", "s3://bucket/a b/c.mp4")
    [video] = videos(tmp_path, "path\nfile:///a%20b/c.mp4\n")
    assert (video.url, video.path) == ("", Path("/a b/c.mp4"))
    with pytest.raises(DataError, match=r"list.csv, line 2: 'ftp://x/c.mp4' cannot be used"):
        videos(tmp_path, "path\nftp://x/c.mp4\n")


def test_a_path_that_looks_like_a_pipe_is_a_file_name(tmp_path: Path):
    assert videos(tmp_path, "path\npipe:cat x.mp4\n")[0].path == tmp_path / "pipe:cat x.mp4"


def test_a_table_may_give_splits_with_unlabelled_and_test_videos_without_labels(tmp_path: Path):
    text = "split;path;label\nval;1.mp4;3\nunlabelled;2.mp4;\ntest;3.mp4;\n"
    assert facts(videos(tmp_path, text, delimiter=";")) == [
        ("1.mp4", "3", "validation"),
        ("2.mp4", None, "unlabelled"),
        ("3.mp4", None, "test"),
    ]


@pytest.mark.parametrize(
    "text", ["path\n1.mp4\n", "path,label\n1.mp4,\n", '{"path": "1.mp4", "label": null}']
)
def test_a_table_may_have_no_labels(tmp_path: Path, text: str):
    assert facts(videos(tmp_path, text)) == [("1.mp4", None, None)]


@pytest.mark.parametrize(
    "text",
    [
        "path,group,start_s,end_s,second label,age,score,ward\na.mp4,p1,,2.5,sit,40,0.5,007\n"
        "b.mp4,,1,,,7,1,12\n",
        '{"path": "a.mp4", "group": "p1", "end_s": 2.5, "second label": "sit", "age": 40, "score": 0.5,'
        ' "ward": "007"}\n'
        '{"path": "b.mp4", "start_s": 1, "second label": "", "age": 7, "score": 1, "ward": "12"}',
    ],
)
def test_additional_columns_get_one_type_each(tmp_path: Path, text: str):
    first, second = videos(tmp_path, text)
    assert (first.group, first.start_s, first.end_s) == ("p1", None, 2.5)
    assert first.extra == {"second label": "sit", "age": 40, "score": 0.5, "ward": "007"}
    assert (second.group, second.start_s, second.end_s) == (None, 1.0, None)
    assert second.extra == {"age": 7, "score": 1.0, "ward": "12"}
    assert [type(second.extra[name]) for name in ("age", "score")] == [int, float]


def test_parts_of_one_video_have_unique_names(tmp_path: Path):
    found = videos(tmp_path, "path,start_s,end_s\na/b.mp4,0,2\na/b.mp4,2,4.25\na/b.mp4,4.25,\nc,1,2\n")
    names = [video.name for video in found]
    assert names == ["a/b#0-2.mp4", "a/b#2-4.25.mp4", "a/b#4.25-.mp4", "c#1-2"]
    assert {video.path.name for video in found} == {"b.mp4", "c"}


def test_the_argument_types_sets_the_type_of_a_column(tmp_path: Path):
    assert videos(tmp_path, "path,age\n1.mp4,40\n", types={"age": "float"})[0].extra == {"age": 40.0}
    with pytest.raises(DataError, match=r"list.csv, line 3: expected a value of type int in age, got 'old'"):
        videos(tmp_path, "path,age\n1.mp4,40\n2.mp4,old\n", types={"age": "int"})
    with pytest.raises(
        DataError, match=r"list.csv, line 1: expected columns of the file in source.args.types, got 'aeg'"
    ):
        videos(tmp_path, "path,age\n1.mp4,40\n", types={"aeg": "int"})


@pytest.mark.parametrize(
    "text, message",
    [
        (
            "path,label\n1.mp4,a\n2.mp4,\n",
            "line 3: expected a label for all videos or for none, got none here",
        ),
        (
            "path,label,split\n1.mp4,a,train\n2.mp4,b,\n",
            "line 3: expected a split for all videos or for none, got none here",
        ),
        ("path,label\n1.mp4,a\n,b\n", "line 3: expected a path as text, got None"),
        ("path,label\n1.mp4,a,b\n", "line 2: expected 2 cells (path,label), got 3"),
        ("path,label\n1.mp4\n", "line 2: expected 2 cells (path,label), got 1"),
        (
            "path,label,split\n1.mp4,a,trian\n",
            "line 2: expected one of the splits train, validation, test, unlabelled, got 'trian'",
        ),
        (
            "path,label\n1.mp4,a\n2.mp4,b\n1.mp4,a\n",
            "line 4: expected each video once, got 1.mp4, which is also in line 2",
        ),
        (
            "path,start_s\n1.mp4,2\n1.mp4,2.0\n",
            "line 3: expected each video once, got 1#2-.mp4, which is also in line 2",
        ),
        ("1.mp4,a\n", "line 1: expected a column path, optionally label, split, group, start_s, end_s"),
        ("path,label,label\n", "line 1: expected a unique name for each column, got 'label' for column 3"),
        ("path,,label\n", "line 1: expected a unique name for each column, got '' for column 2"),
        ("path,frames\n", "line 1: expected other names than those of the index, got the column 'frames'"),
        ("", "line 1: expected a column path"),
        ('path,label\n"1.mp4,a\n', "expected csv, got invalid text: unexpected end of data"),
        ("path,start_s\n1.mp4,soon\n", "line 2: expected seconds, 0 or more, in start_s, got 'soon'"),
        ("path,start_s\n1.mp4,-1\n", "line 2: expected seconds, 0 or more, in start_s, got -1.0"),
        ("path,start_s,end_s\n1.mp4,2,2\n", "line 2: expected end_s above start_s=2, got 2"),
        ('{"path": "1.mp4"}\n["2.mp4"]', "line 2: expected a json object such as"),
        ('{"path": "1.mp4"}\n\n{"path": }', "line 3: expected one json object, got"),
        ('{"path": "1.mp4", "path": "2.mp4"}', "line 1: expected one json object, got"),
        ('{"label": "1"}', "line 1: expected a column path, optionally label"),
        ('{"path": 1}', "line 1: expected a path as text, got 1"),
        ('{"path": "1.mp4", "label": 0.5}', "line 1: expected text or a whole number in label, got 0.5"),
        ('{"path": "1.mp4", "group": true}', "line 1: expected text or a whole number in group, got True"),
        ('{"path": "1.mp4", "end_s": true}', "line 1: expected seconds, 0 or more, in end_s, got True"),
        ('{"path": "1.mp4", "end_s": Infinity}', "line 1: expected seconds, 0 or more, in end_s, got inf"),
        (
            '{"path": "1.mp4", "crc32": 1}',
            "line 1: expected other names than those of the index, got the column 'crc32'",
        ),
        ('{"path": "1.mp4", "x": [1]}', "line 1: expected text or a finite number in x, got [1]"),
        ('{"path": "1.mp4", "x": NaN}', "line 1: expected text or a finite number in x, got nan"),
        ("path,start_s\n1.mp4,1e999\n", "line 2: expected seconds, 0 or more, in start_s, got '1e999'"),
        (
            '{"path": "1.mp4", "x": 1}\n{"path": "2.mp4", "x": "b"}',
            "line 2: expected one type in x, got 'b' after 1",
        ),
    ],
)
def test_an_invalid_table_is_an_error_that_states_the_line(tmp_path: Path, text: str, message: str):
    with pytest.raises(DataError, match=re.escape(message)) as caught:
        listing(tmp_path, text)
    assert "/list." in str(caught.value)


@pytest.mark.parametrize(
    "label, message",
    [
        ("x", "line 3: expected a label that is a whole number, 0 or more, got 'x'"),
        ("-1", "line 3: expected a label that is a whole number, 0 or more, got '-1'"),
        ("3", "line 3: expected a label from 0 to 2 .source.args.num_classes=3., got 3"),
        ("", "line 3: expected a label for all videos or for none, got none here"),
    ],
)
def test_num_classes_requires_numbers_below_it(tmp_path: Path, label: str, message: str):
    with pytest.raises(DataError, match=message):
        listing(tmp_path, f"path,label\n1.mp4,2\n2.mp4,{label}\n", num_classes=3)
    with pytest.raises(DataError, match=message):
        first, second = {"path": "1.mp4", "label": 2}, {"path": "2.mp4", "label": label or None}
        listing(tmp_path, f"{json.dumps(first)}\n\n{json.dumps(second)}", num_classes=3)


def test_num_classes_includes_classes_without_a_video(tmp_path: Path):
    assert listing(tmp_path, "path,label\n1.mp4,2\n", num_classes=4).classes == ("0", "1", "2", "3")


def test_many_missing_files_are_an_error_and_few_are_counted(tmp_path: Path):
    (tmp_path / "1.mp4").touch()
    found = listing(tmp_path, "path\n1.mp4\n2.mp4\n", max_missing_fraction=0.5)
    assert (len(found.videos), found.missing) == (2, 1)
    with pytest.raises(
        DataError,
        match=r"expected a file for each of 3 videos, got none for 2, first .*list.csv, line 3: .*2.mp4",
    ):
        listing(tmp_path, "path\n1.mp4\n2.mp4\n3.mp4\n", max_missing_fraction=0.5)


def test_another_encoding_is_an_error(tmp_path: Path):
    (tmp_path / "list.csv").write_bytes("path,label\n\xe9.mp4,a\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"list.csv: expected text in UTF-8, .*; fix: save it as UTF-8"):
        CsvSource().list_videos(tmp_path / "list.csv")


@pytest.mark.parametrize(
    "args, message",
    [
        ({"delimiter": "tab"}, "source.args.delimiter must be one character, got 'tab'"),
        ({"types": {"age": "number"}}, "source.args.types.age must be one of int, float, text"),
        (
            {"types": {"label": "int"}},
            "source.args.types.label must be one of int, float, text for an additional column",
        ),
        ({"num_classes": -1}, "source.args.num_classes must be 0 .* or more, got -1"),
        ({"max_missing_fraction": 2.0}, r"source.args.max_missing_fraction must lie in \[0, 1\], got 2.0"),
    ],
)
def test_a_wrong_argument_is_named(args: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        CsvSource(**args)
    if "num_classes" in args:
        with pytest.raises(ValueError, match=message):
            JsonlSource(**args)


@given(st.lists(st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False), min_size=1))
def test_numbers_survive_a_csv(values: list[int | float]):
    rows = [Row(where=str(number), cells={"x": str(value)}) for number, value in enumerate(values)]
    read = [row.cells["x"] for row in parse_column(rows, "x", None)]
    assert read == values
    assert len({type(value) for value in read}) == 1


@given(st.lists(st.text(min_size=1), min_size=1))
def test_any_text_survives_a_csv(values: list[str]):
    rows = [Row(where=str(number), cells={"x": value}) for number, value in enumerate(values)]
    read = [row.cells["x"] for row in parse_column(rows, "x", None)]
    kind = {type(value) for value in read}
    assert kind in ({str}, {int}, {float})
    assert kind == {float} or [str(value) for value in read] == values
    assert unify_columns(rows, "x") == rows
