"""Collections of every supported layout are listed; contradictions are named."""

import re
from collections import Counter
from pathlib import Path

import pytest

from data_tools.command import DataError
from data_tools.parts import Part, build_part, part_names
from data_tools.sources.base import Source
from data_tools.sources.csv import CsvSource
from data_tools.sources.folder import FolderSource


def place(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def listed(source: Source, root: Path) -> list[tuple[str, str | None, str | None]]:
    return [(video.name, video.label, video.split) for video in source.listing(root).videos]


def table(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "list.csv"
    path.write_bytes(text.encode())
    return path


@pytest.mark.parametrize("name", part_names("data_tools.sources"))
def test_every_source_is_built_by_name_and_lists_files_with_their_names(name: str, tmp_path: Path):
    place(tmp_path, "run/a.mp4")
    root = table(tmp_path, "path,label\nrun/a.mp4,run\n") if name == "csv" else tmp_path
    source = build_part("data_tools.sources", Part(name=name), Source)
    listing = source.listing(root)
    assert [(video.name, video.label) for video in listing.videos] == [("run/a.mp4", "run")]
    assert listing.videos[0].path.is_file()


def test_a_folder_for_each_class(tmp_path: Path):
    place(tmp_path, "b/2.mp4", "b/deep/1.MKV", "a/3.webm")
    assert listed(FolderSource(), tmp_path) == [
        ("a/3.webm", "a", None),
        ("b/2.mp4", "b", None),
        ("b/deep/1.MKV", "b", None),
    ]


def test_videos_alone_have_no_labels(tmp_path: Path):
    place(tmp_path, "2.mp4", "1.mp4")
    assert listed(FolderSource(), tmp_path) == [("1.mp4", None, None), ("2.mp4", None, None)]


def test_folders_for_splits(tmp_path: Path):
    place(tmp_path, "train/a/1.mp4", "val/a/2.mp4", "test/3.mp4", "unlabelled/x/4.mp4", "about.json")
    assert listed(FolderSource(), tmp_path) == [
        ("test/3.mp4", None, "test"),
        ("train/a/1.mp4", "a", "train"),
        ("unlabelled/x/4.mp4", None, "unlabelled"),
        ("val/a/2.mp4", "a", "validation"),
    ]


def test_a_class_may_be_named_like_a_split_beside_others(tmp_path: Path):
    place(tmp_path, "train/1.mp4", "bus/2.mp4")
    assert listed(FolderSource(), tmp_path) == [("bus/2.mp4", "bus", None), ("train/1.mp4", "train", None)]


def test_other_files_are_counted_and_hidden_ones_never_taken(tmp_path: Path):
    place(tmp_path, "a/1.mp4", "a/notes.txt", "a/._1.mp4", "LICENSE", ".cache/2.mp4")
    listing = FolderSource().listing(tmp_path)
    assert [video.name for video in listing.videos] == ["a/1.mp4"]
    assert listing.ignored == 3


def test_a_name_that_is_no_text_is_spelled_out(tmp_path: Path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "\udcff.mp4").touch()
    assert listed(FolderSource(), tmp_path) == [("a/\\xff.mp4", "a", None)]


@pytest.mark.parametrize(
    "names, message",
    [
        (["a/1.mp4", "2.mp4"], r"holds both videos (2.mp4) and folders of videos"),
        (["train/a/1.mp4", "train/2.mp4"], r"train holds both videos (2.mp4)"),
        (["train/1.mp4", "val/2.mp4", "3.mp4"], "holds videos beside its split folders"),
    ],
)
def test_an_ambiguous_folder_is_refused(tmp_path: Path, names: list[str], message: str):
    with pytest.raises(DataError, match=re.escape(message)):
        FolderSource().listing(place(tmp_path, *names))


def test_real_clips_are_listed_by_class(videos: Path):
    listing = FolderSource().listing(videos / "surveillance")
    assert Counter(video.label for video in listing.videos) == {"fight": 150, "no_fight": 150}


def test_a_csv_has_paths_relative_to_itself(tmp_path: Path):
    root = table(tmp_path, '\ufeffpath,label\r\n"a, b/1.mp4",run\r\n\r\n../2.mp4, walk \r\n')
    assert listed(CsvSource(), root) == [("a, b/1.mp4", "run", None), ("../2.mp4", "walk", None)]
    assert CsvSource().listing(root).videos[0].path == tmp_path / "a, b" / "1.mp4"


def test_a_csv_may_fix_the_splits_and_leave_the_unlabelled_without_label(tmp_path: Path):
    root = table(tmp_path, "split;path;label\nval;1.mp4;3\nunlabelled;2.mp4;\n")
    source = build_part("data_tools.sources", Part(name="csv", args={"delimiter": ";"}), Source)
    assert listed(source, root) == [("1.mp4", "3", "validation"), ("2.mp4", None, "unlabelled")]


@pytest.mark.parametrize("text", ["path\n1.mp4\n", "path,label\n1.mp4,\n"])
def test_a_csv_may_have_no_labels_at_all(tmp_path: Path, text: str):
    assert listed(CsvSource(), table(tmp_path, text)) == [("1.mp4", None, None)]


@pytest.mark.parametrize(
    "text, message",
    [
        ("path,label\n1.mp4,a\n2.mp4,\n", "line 3: the label is missing, as in 1 of 2 lines"),
        ("path,label,split\n1.mp4,a,train\n2.mp4,b,\n", "line 3: the split is missing"),
        ("path,label\n1.mp4,a\n,b\n", "line 3: the path is missing"),
        ("path,label\n1.mp4,a,b\n", "line 2: expected 2 cells (path,label), got 3"),
        ("path,label\n1.mp4\n", "line 2: expected 2 cells (path,label), got 1"),
        ("path,label,split\n1.mp4,a,trian\n", "line 2: no split named 'trian'; there is train, validation"),
        ("path,label\n1.mp4,a\n2.mp4,b\n1.mp4,a\n", "line 4: 1.mp4 stands in line 2 already"),
        ("1.mp4,a\n", "line 1: expected the header path,label or path,label,split, got '1.mp4,a'"),
        ("path,label,label\n", "line 1: expected the header"),
        ("", "line 1: expected the header"),
        ('path,label\n"1.mp4,a\n', "is no csv file in UTF-8"),
    ],
)
def test_a_wrong_csv_is_named_with_its_line(tmp_path: Path, text: str, message: str):
    with pytest.raises(DataError, match=re.escape(message)):
        CsvSource().listing(table(tmp_path, text))


def test_a_csv_in_another_encoding_is_named(tmp_path: Path):
    (tmp_path / "list.csv").write_bytes("path,label\n\xe9.mp4,a\n".encode("latin-1"))
    with pytest.raises(DataError, match="is no csv file in UTF-8"):
        CsvSource().listing(tmp_path / "list.csv")


def test_what_cannot_be_opened_is_named(tmp_path: Path):
    with pytest.raises(DataError, match=r"cannot read .*list.csv: No such file"):
        CsvSource().listing(tmp_path / "list.csv")
    with pytest.raises(DataError, match=r"cannot list .*nothing: No such file"):
        FolderSource().listing(tmp_path / "nothing")


def test_a_delimiter_is_one_character():
    with pytest.raises(ValueError, match=r"source.args.delimiter must be one character, got 'tab'"):
        CsvSource(delimiter="tab")
