"""Csv files of other programs: read, or an error that states the argument to read them."""

import re
from pathlib import Path
from typing import Any

import pytest

from kinemae.data_tools.command import DataError
from kinemae.data_tools.manifest.videos import Manifest
from kinemae.data_tools.sources.csv import CsvSource
from kinemae.data_tools.sources.jsonl import JsonlSource

NAMES = ("v/a 1.mp4", "v/b, 2.mp4", "v/\u00fc.mp4")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in NAMES:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def listing(root: Path, text: str | bytes, **args: Any) -> Manifest:
    file = root / "list.csv"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return CsvSource(**args).list_videos(file)


def facts(found: Manifest) -> list[tuple[str, str | None]]:
    return [(video.name, video.label) for video in found.videos]


EXPECTED = [("v/a 1.mp4", "x"), ("v/b, 2.mp4", "y")]


@pytest.mark.parametrize(
    "text",
    [
        'path;label\nv/a 1.mp4;x\n"v/b, 2.mp4";y\n',
        "path\tlabel\nv/a 1.mp4\tx\nv/b, 2.mp4\ty\n",
        "path|label\nv/a 1.mp4|x\nv/b, 2.mp4|y\n",
        'path      label\n"v/a 1.mp4"   x\n"v/b, 2.mp4"   y\n',
        "sep=;\r\npath;label\r\nv/a 1.mp4;x\r\nv/b, 2.mp4;y\r\n",
        "path,label\nv/a 1.mp4,x\nv/b, 2.mp4,y\n",  # without quotes
        'Path, Label \n"v/a 1.mp4", "x"\n"v/b, 2.mp4", "y"\n',
        '\r\n# made by hand\r\n#path,label\r\n# one\r\nv/a 1.mp4,x\r\n\r\n"v/b, 2.mp4",y\r\n# end\r\n',
        'path,label\rv/a 1.mp4,x\r"v/b, 2.mp4",y\r',
        ',path,label\n0,v/a 1.mp4,x\n1,"v/b, 2.mp4",y\n',  # index of pandas
        'path,label,\nv/a 1.mp4,x,\n"v/b, 2.mp4",y,\n',
        'path,label\nv/a 1.mp4,x,,\n"v/b, 2.mp4",y,\n',
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_csv_files_of_other_programs_are_read(root: Path, text: str, encoding: str):
    assert facts(listing(root, text.encode(encoding))) == EXPECTED


def test_another_encoding_is_an_error_that_states_the_line_and_the_argument(root: Path):
    text = "path;label\r\nv/a 1.mp4;x\r\nv/\u00fc.mp4;y\r\n".encode("cp1252")
    message = (
        r"list.csv: expected text in UTF-8, got byte 0xfc in line 3; fix: save it as UTF-8, or set "
        r"source.args.encoding=cp1252 .* in which the line is 'v/\u00fc.mp4;y'"
    )
    with pytest.raises(DataError, match=message):
        listing(root, text)
    assert facts(listing(root, text, encoding="cp1252")) == [("v/a 1.mp4", "x"), ("v/\u00fc.mp4", "y")]
    with pytest.raises(DataError, match=r"expected text in ascii, got byte 0xfc in line 3; fix: correct"):
        listing(root, text, encoding="ascii")
    for source in (CsvSource, JsonlSource):
        with pytest.raises(ValueError, match=r"source.args.encoding must name an encoding, such as cp1252"):
            source(encoding="utf-9")


def words(error: DataError) -> dict[str, Any]:
    """Parse the arguments that an error message suggests."""
    found: dict[str, Any] = {}
    for key, value in re.findall(r"source\.args\.([\w.]+)=([^\s;')]+)", str(error).partition("fix: ")[2]):
        outer, _, inner = key.partition(".")
        if inner:
            found.setdefault(outer, {}).setdefault(inner, value)
        else:
            found[outer] = value
    return found


@pytest.mark.parametrize(
    "header, message",
    [
        ("video_path,label", r"fix: add source.args.columns.path=video_path$"),
        ("file_name,class", r"columns.path=file_name source.args.columns.label=class$"),
        ("Pfad,Klasse", r"columns.path=Pfad source.args.columns.label=Klasse$"),
        ("path,class", r"expected a column label, got 'class'; fix: .* or source.args.columns.label=null"),
        ("path,Category Name", r"expected a column label, got 'Category Name'"),
    ],
)
def test_other_column_names_are_an_error_that_states_the_argument(root: Path, header: str, message: str):
    text = f"{header}\nv/a 1.mp4,x\nv/\u00fc.mp4,y\n"
    with pytest.raises(DataError, match=rf"list.csv, line 1: .*{message}") as caught:
        listing(root, text)
    given = words(caught.value) if "Name" not in header else {"columns": {"label": "Category Name"}}
    assert facts(listing(root, text, **given)) == [("v/a 1.mp4", "x"), ("v/\u00fc.mp4", "y")]


def test_a_column_can_be_renamed_or_left_out(root: Path):
    text = "path,class,width,key\nv/a 1.mp4,x,3,4\n"
    with pytest.raises(
        DataError, match=r"got the column 'width'; fix: add source.args.columns.my_width=width to"
    ):
        listing(root, text, columns={"label": None})
    found = listing(root, text, columns={"label": None, "my_width": "width", "key": None})
    assert (facts(found), found.videos[0].extra) == ([("v/a 1.mp4", None)], {"class": "x", "my_width": 3})
    with pytest.raises(DataError, match=r"expected source.args.columns.path to be one of path.*, got 'file'"):
        listing(root, text, columns={"path": "file"})
    for columns in ({"path": None}, {"label": 3}, {"crc32": "x"}):
        with pytest.raises(
            ValueError, match=r"source.args.columns.\w+ must be the name of a column of the list"
        ):
            CsvSource(columns=columns)


@pytest.mark.parametrize(
    "text, message",
    [
        ("v/a 1.mp4,x\nv/\u00fc.mp4,y\n", r"got 'v/a 1.mp4, x'; fix: the file has no header row"),
        ("x;v/a 1.mp4\ny;v/\u00fc.mp4\n", r"add source.args.header=label,path \(its columns in order"),
        ("x v/1.mp4 9\n", r"got 'x v/1.mp4 9'; fix: this is a list of paths .* add source.name=path_label"),
        ("v/1.mp4,0,-1\n", r"add source.name=path_label"),
        ("label,youtube_id,time_start,time_end,split\n", r"columns of Kinetics, add source.name=kinetics"),
        ("a,b\n1,2\n", r"fix: state the column of the paths, as in source.args.columns.path=a$"),
        ("a\n1\n", r"fix: state the column of the paths, as in source.args.columns.path=NAME$"),
    ],
)
def test_a_missing_header_is_an_error_that_states_the_fix(root: Path, text: str, message: str):
    with pytest.raises(DataError, match=message) as caught:
        listing(root, text)
    if "source.args.header" in str(caught.value):
        assert facts(listing(root, text, **words(caught.value))) == [
            ("v/a 1.mp4", "x"),
            ("v/\u00fc.mp4", "y"),
        ]


def test_the_argument_header_names_the_columns(root: Path):
    assert facts(listing(root, "v/1.mp4 x\n", header="path,label", max_missing_fraction=1.0)) == [
        ("v/1.mp4", "x")
    ]
    [video] = listing(root, "7,v/a 1.mp4,x\n", header="score,path,label").videos
    assert (video.label, video.extra) == ("x", {"score": 7})
    with pytest.raises(
        ValueError, match=r"source.args.header must be names joined by commas, .* got 'path,,x'"
    ):
        CsvSource(header="path,,x")


def test_missing_label_and_split_columns_are_logged(root: Path, logged: pytest.LogCaptureFixture):
    rows = "".join(f"v/{number}.mp4,{'ab'[number % 2]},train\n" for number in range(4))
    listing(root, f"path,Klasse,subset\n{rows}", max_missing_fraction=1.0)
    assert "no column label, so the videos have no classes; source.args.columns.label=Klasse" in logged.text
    assert "no column split, so splits are drawn; source.args.columns.split=subset" in logged.text
    listing(root, "path,label,start,End Time\nv/a 1.mp4,x,0,1\n")
    assert (
        "no column start_s, and the column start cuts no video; source.args.columns.start_s=start"
        in logged.text
    )
    assert (
        "no column end_s, and the column End Time cuts no video; 'source.args.columns.end_s=End"
        in logged.text
    )
    listing(root, "Path,LABEL\nv/a 1.mp4,x\n")
    assert "columns are read by other names: Path as path, LABEL as label" in logged.text


@pytest.mark.parametrize(
    "content, message",
    [
        (
            b"version https://git-lfs.github.com/spec/v1\noid",
            r"got a pointer of Git LFS; fix: fetch the file with",
        ),
        (b"<!DOCTYPE html>\n", r"got a web page; fix: download the file itself"),
        (b"PK\x03\x04\xff", r"got a zip file or a workbook; fix: save the table as CSV UTF-8"),
        (
            b"path,label\nv,x\n",
            r"line 2: expected a video file, got the folder .*/v; fix: for folders of images",
        ),
        (
            b"path,label\nv/a 1.mp4;x\n",
            r"line 2: expected 2 cells .*; fix: put ',' between the cells, also of",
        ),
        (b"id,label\na,x\n", r"fix: state the column of the paths, as in source.args.columns.path=id"),
    ],
)
def test_a_file_that_is_not_a_list_is_an_error(root: Path, content: bytes, message: str):
    with pytest.raises(DataError, match=message):
        listing(root, content)


def test_a_row_with_too_many_cells_is_an_error_with_a_fix(root: Path):
    with pytest.raises(
        DataError, match=r"line 2: expected 2 cells \(path,label\), got 3; fix: put a cell that"
    ):
        listing(root, "path,label\nv/c, 3.mp4,x\n")
    with pytest.raises(
        DataError, match=r"expected seconds, 0 or more, in start_s, got '1,5'; fix: write a decimal point"
    ):
        listing(root, "path;start_s\nv/a 1.mp4;1,5\n")


def test_keys_of_a_jsonl_file_can_be_renamed(root: Path):
    file = root / "metadata.jsonl"
    file.write_text('{"file_name": "v/a 1.mp4", "class": 1.0}\n')
    with pytest.raises(
        DataError, match=r"jsonl, line 1: .*columns.path=file_name source.args.columns.label=class"
    ):
        JsonlSource().list_videos(file)
    found = JsonlSource(columns={"path": "file_name", "label": "class"}).list_videos(file)
    assert facts(found) == [("v/a 1.mp4", "1")]
    file.write_text('{"path": "x"}\n{"path": "y", "label": 1, "LABEL": 2}\n')
    with pytest.raises(DataError, match=r"jsonl, line 2: expected one column 'label', got two; fix: remove"):
        JsonlSource(columns={"label": "LABEL"}).list_videos(file)
