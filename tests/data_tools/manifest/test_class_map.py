"""Class numbers: fixed by lists and earlier outputs; unknown labels are errors."""

import json
from pathlib import Path

import pytest

from kinemae.data_tools.command import DataError
from kinemae.data_tools.index import open_index
from kinemae.data_tools.manifest.class_map import class_list, read_classes, sorted_classes
from tests.sharding import shard, write_clip


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("classes")
    for number, name in enumerate("abc"):
        write_clip(root / "videos" / name / "1.mp4", number)
    assert shard(root / "videos", root / "out", "layout.name=copy") == 0
    return root / "out"


@pytest.mark.parametrize("name", ["", "classes.json", "train", "train/dataset.json"])
def test_an_earlier_output_fixes_the_class_numbers(earlier: Path, tmp_path: Path, name: str):
    write_clip(tmp_path / "videos" / "c" / "1.mp4", 0)
    arguments = ("layout.name=copy", f"classes={earlier / name}")
    assert shard(tmp_path / "videos", tmp_path / "out", *arguments) == 0
    index = open_index(tmp_path / "out" / "train")
    assert index.classes == ("a", "b", "c")
    assert index.sample(0).label == 2
    assert json.loads((tmp_path / "out" / "classes.json").read_text()) == ["a", "b", "c"]


def test_a_label_outside_of_the_class_list_is_an_error_that_names_the_video(
    earlier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    write_clip(tmp_path / "videos" / "a" / "1.mp4", 0)
    write_clip(tmp_path / "videos" / "d" / "2.mp4", 0)
    assert shard(tmp_path / "videos", tmp_path / "out", f"classes={earlier}", "--dry-run") == 3
    message = f"d/2.mp4: expected one of the 3 classes of classes={earlier}, got the label 'd'"
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "name, text, classes",
    [
        ("list.txt", "walk\n run fast \n\n", ["walk", "run fast"]),
        ("list.json", '["2", "1"]', ["2", "1"]),
        ("x.json", '{"classes": ["b", "a"], "more": 1}', ["b", "a"]),
    ],
)
def test_a_class_list_gives_the_order(tmp_path: Path, name: str, text: str, classes: list[str]):
    (tmp_path / name).write_text(text)
    assert read_classes(str(tmp_path / name)) == classes


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("list.txt", "a\nb\na\n", "expected each class once, got 'a' twice"),
        ("list.txt", "\n", "expected each class once, got no class"),
        ("list.json", "[1, 2]", "expected a list of texts, or an object with such a list as classes, got"),
        ("list.json", "{}", "expected a list of texts, or an object with such a list as classes, got None"),
        ("list.json", "[", "expected a list of classes, got invalid text: Expecting value"),
        ("folder/x", "", "expected classes.json or dataset.json in the folder, got none"),
    ],
)
def test_an_invalid_class_list_is_an_error(tmp_path: Path, name: str, text: str, message: str):
    (tmp_path / "folder").mkdir()
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        read_classes(str(tmp_path / name.removesuffix("/x")))


def test_a_missing_class_list_is_an_error(tmp_path: Path):
    with pytest.raises(DataError, match=r"cannot read .*nothing.txt: No such file"):
        read_classes(str(tmp_path / "nothing.txt"))


def test_given_classes_keep_their_order():
    assert class_list({"x.mp4": "b"}, ("c", "b"), origin="the source") == ["c", "b"]
    assert class_list({"x.mp4": "b", "y.mp4": None}, (), origin="") == ["b"]


def test_integer_classes_are_sorted_by_value():
    assert sorted_classes(["10", "9", "10", "-1"]) == ["-1", "9", "10"]
    assert sorted_classes(["10", "9", "b"]) == ["10", "9", "b"]
    assert sorted_classes([]) == []
