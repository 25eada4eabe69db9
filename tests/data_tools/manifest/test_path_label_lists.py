"""Lists of paths followed by numbers, path spellings of other systems, and folders with links."""

import json
import os
import shlex
from pathlib import Path
from typing import Any

import pytest

from kinemae.data_tools.command import DataError
from kinemae.data_tools.components import Component, build_component
from kinemae.data_tools.config import load_config
from kinemae.data_tools.manifest.class_map import label_text, unified_labels, warn_of_labels
from kinemae.data_tools.manifest.videos import Manifest
from kinemae.data_tools.sharding.plan import ShardConfig, make_plan
from kinemae.data_tools.sources.base import Source
from kinemae.data_tools.storage.location import location
from tests.source_collections import write_clip, write_text

VIDEOS = ("v/a 1.mp4", "v/\u00fc.mp4", "v/c.mp4")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in VIDEOS:
        write_text(tmp_path / name, "")
    return tmp_path


def listing(root: Path, text: str, name: str = "list.txt", **args: Any) -> Manifest:
    part = Component(name="csv" if name.endswith("csv") else "path_label", args=args)
    return build_component("kinemae.data_tools.sources", part, Source).list_videos(
        write_text(root / name, text)
    )


def facts(found: Manifest) -> list[tuple[str, str | None]]:
    return [(video.name, video.label) for video in found.videos]


@pytest.mark.parametrize(
    "line, label",
    [
        ("{} 3", "3"),
        ("{}\t3", "3"),
        ("{}, 3", "3"),
        ("{};3", "3"),
        ("{} | 3", "3"),
        ("{} 3.0 ", "3"),
        ("'{}' 3", "3"),
        ('"{}" 3', "3"),
        ("# a comment\n{} 3", "3"),
        ("{}", None),
        ('"{}"', None),
        ("{} 0 -1", None),  # VideoMAE V2
        ("{},0,-1", None),
    ],
)
def test_lists_with_and_without_labels_are_read(root: Path, line: str, label: str | None):
    text = "".join(f"{line.format(name)}\r\n" for name in VIDEOS)
    assert facts(listing(root, text)) == [(name, label) for name in VIDEOS]


def test_frames_of_videomae_v2_are_images_from_a_start_number(root: Path):
    for number in range(3, 8):
        write_text(root / "f 1" / f"img_{number:05}.jpg", "")
    text = "v/c.mp4 0 -1\nf 1 3 5\n"
    video, pictures = listing(root, text, fps=12.0).videos
    assert (video.frames, video.fps, video.label) == ((), None, None)
    assert (pictures.frames, pictures.fps) == (tuple(f"img_{number:05}.jpg" for number in range(3, 8)), 12.0)
    write_text(root / "f 1" / "x9.png", "")
    [pictures] = listing(root, "f 1 9 1\n", header="path,start,frames", filename_tmpl="x{:d}.png").videos
    assert pictures.frames == ("x9.png",)


@pytest.mark.parametrize(
    "text, args, message",
    [
        (
            "v/c.mp4 24 0\n",
            {},
            r"line 1: expected PATH LABEL, got two numbers .*header=path,ignore,label if",
        ),
        ("v/c.mp4 0,3\n", {}, r"line 1: expected PATH LABEL, got two numbers"),
        (
            "v/c.mp4 0 9\n",
            {"header": "path,start,frames"},
            r"expected a folder of images, or -1 frames for a",
        ),
        (
            "v 1 9\n",
            {"header": "path,start,frames"},
            r"expected 9 images from number 1 on in .*/v, got no file",
        ),
        ("v 1 x\n", {"header": "path,start,frames"}, r"line 1: expected a whole number as frames, got 'x'"),
        ("v 1\n", {"header": "path,start,frames"}, r"line 1: expected PATH START FRAMES, got 'v 1'"),
        (
            "v/c.mp4 -1\n",
            {},
            r"got '-1'; fix: add source.args.header=path,ignore for videos without labels",
        ),
        (
            "path label\nv/c.mp4 1\n",
            {},
            r"got 'label'; fix: add source.name=csv for a list with a header row",
        ),
        ("v/c.mp4 run\n", {}, r"got 'run'; fix: add source.name=csv source.args.header=path,label"),
        (
            "path,label\nv/c.mp4,a\n",
            {},
            r"got 'path,label'; fix: add source.name=csv for a table with a header row",
        ),
        ("7 v/c.mp4\n8 v/\u00fc.mp4\n", {}, r"fix: add source.args.header=label,path"),
    ],
)
def test_a_list_of_another_kind_is_an_error_with_a_fix(
    root: Path, text: str, args: dict[str, Any], message: str
):
    with pytest.raises(DataError, match=message):
        listing(root, text, **args)


def test_the_argument_header_names_the_cells_of_a_line(root: Path):
    assert facts(listing(root, "v/a 1.mp4 24 0\n", header="path,ignore,label")) == [("v/a 1.mp4", "0")]
    assert facts(listing(root, "5 v/a 1.mp4\n", header="label,path")) == [("v/a 1.mp4", "5")]
    assert facts(listing(root, "v/c.mp4 -1\n", header="path,ignore")) == [("v/c.mp4", None)]
    for header in ("label", "path,lable", "path,label,label"):
        with pytest.raises(
            ValueError, match=r"source.args.header must be path and optionally label, start, frames"
        ):
            listing(root, "", header=header)
    with pytest.raises(ValueError, match=r"source.args.fps must be above 0"):
        listing(root, "", fps=0.0)
    with pytest.raises(ValueError, match=r"source.args.filename_tmpl must hold one"):
        listing(root, "", filename_tmpl="x.jpg")


@pytest.mark.parametrize(
    "written, name",
    [
        ("v\\a 1.mp4", "v/a 1.mp4"),
        ("v/a%201.mp4", "v/a%201.mp4"),
        ("v/u\u0308.mp4", "v/u\u0308.mp4"),
        ("v/A 1.MP4", "v/A 1.MP4"),
        ("v/c", "v/c.mp4"),
    ],
)
def test_paths_with_spellings_of_other_systems_are_found(
    root: Path, written: str, name: str, logged: pytest.LogCaptureFixture
):
    for text, file in ((f"{written} 1\n", "list.txt"), (f"path,label\n{written},1\n", "list.csv")):
        [video] = listing(root, text, file).videos
        assert (video.path.is_file(), video.name) == (True, name)
        assert f"1 paths of the list have another spelling on the disk, first {root / file}" in logged.text


def test_a_home_folder_is_expanded_and_an_ambiguous_name_is_missing(
    root: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HOME", str(root / "v"))
    [video] = listing(root, "~/c.mp4 1\n").videos
    assert video.path == root / "v" / "c.mp4"
    write_text(root / "v" / "c.webm", "")
    with pytest.raises(
        DataError, match=r"a file for each of 1 videos, got none for 1, .*/v/c; fix: correct the"
    ):
        listing(root, "v/c 1\n")


@pytest.mark.parametrize(
    "folder, prefix",
    [
        ("lists", ""),
        ("", "/mnt/old place/k400/"),
        ("", "D:\\data\\"),
        ("lists/k400", "/mnt/k400/"),
        ("", "data/"),
    ],
)
def test_the_printed_fix_for_missing_files_works(root: Path, folder: str, prefix: str):
    rows = "".join(f'"{prefix}{name}",x\n' for name in VIDEOS)
    file = write_text(root / folder / "list.csv", f"path,label\n{rows}")
    settings = load_config(ShardConfig, None, [])
    with pytest.raises(DataError, match=r"a file for each of 3 videos, got none for 3") as caught:
        make_plan(location(file), settings)
    advice = shlex.split(str(caught.value).partition("fix: add ")[2].partition(", or raise")[0])
    assert all(word.startswith(("source.args.videos=", "source.args.strip=")) for word in advice) and advice
    plan = make_plan(location(file), load_config(ShardConfig, None, advice))
    assert plan.manifest.missing == 0
    assert plan.record["source"]["name"] == "csv"


def test_the_record_holds_no_source_that_is_detected(root: Path):
    file = write_text(root / "list.csv", "path\nv/c.mp4\n")
    assert make_plan(location(file), load_config(ShardConfig, None, [])).record["source"] is None
    named = make_plan(location(file), load_config(ShardConfig, None, ["source={name: csv}"]))
    assert named.record["source"] == {"name": "csv", "args": {}}


@pytest.mark.parametrize(
    "labels, expected",
    [
        (["1", "1.0", "2.0", "10"], ["1", "1", "2", "10"]),
        (["1.0", "2."], ["1", "2"]),
        (["01", "02"], ["01", "02"]),
        (["01", "1", "2.0"], ["1", "1", "2"]),
        (["1.5", "1.0"], ["1.5", "1.0"]),
        (["1.0", "run"], ["1.0", "run"]),
    ],
)
def test_labels_that_are_one_number_are_one_class(root: Path, labels: list[str], expected: list[str]):
    rows = "".join(f"{number}.mp4,{label}\n" for number, label in enumerate(labels))
    found = listing(root, f"path,label\n{rows}", "list.csv", max_missing_fraction=1.0)
    assert [video.label for video in found.videos] == expected
    assert unified_labels([]) == {}


@pytest.mark.parametrize("label", ["nan", "NaN", "<NA>", "NaT", "null", "#N/A"])
def test_a_missing_value_as_label_is_an_error(root: Path, label: str):
    with pytest.raises(DataError, match=r"line 3: expected a label, got .*means a missing value; fix: add"):
        listing(root, f"path,label\nv/c.mp4,x\nv/a 1.mp4,{label}\n", "list.csv")


def test_labels_in_json_may_be_integral_floats():
    assert [label_text(value) for value in (1.0, 2, "x", 0.5, True, None, [1])] == [
        "1",
        "2",
        "x",
        *[None] * 4,
    ]


def test_similar_class_names_are_logged(logged: pytest.LogCaptureFixture):
    warn_of_labels(["Run", "run", "sit down", "sit_down", "walk"])
    assert "the labels 'Run' and 'run' are 2 classes: they differ only in case" in logged.text
    assert "the labels 'sit down' and 'sit_down' are 2 classes" in logged.text
    warn_of_labels(["-1", "0"])
    assert "the label '-1' is used as a class" in logged.text
    warn_of_labels(["1", "4"])
    assert "but not 0 to 1: class numbers follow their order, label 1 is 0" in logged.text
    logged.clear()
    warn_of_labels(["0", "1"])
    warn_of_labels(["a", "b"])
    assert logged.text == ""


@pytest.mark.parametrize("source, name", [("folder", "a.mp4"), ("frames", "v/1.jpg")])
def test_links_to_folders_are_followed_and_cycles_are_errors(tmp_path: Path, source: str, name: str):
    write_text(tmp_path / "elsewhere" / "deep" / name, "")
    for label in ("x", "y"):
        write_text(tmp_path / "set" / label / "own" / name, "")
    (tmp_path / "set" / "x" / "more").symlink_to(tmp_path / "elsewhere")
    built = build_component("kinemae.data_tools.sources", Component(name=source), Source)
    found = built.list_videos(tmp_path / "set")
    assert len(found.videos) == 3
    assert {video.label for video in found.videos if "/more/deep/" in video.name} == {"x"}
    for link, target in (("set/x/loop", "set"), ("elsewhere/back", "set/x"), ("set/z", ".")):
        (tmp_path / link).symlink_to(tmp_path / target)
        with pytest.raises(
            DataError, match=r"expected a folder, got a link to .*, which holds it; fix: remove it"
        ):
            built.list_videos(tmp_path / "set")
        os.unlink(tmp_path / link)
    assert len(built.list_videos(tmp_path / "set").videos) == 3


def test_kinetics_videos_behind_a_link_are_found(tmp_path: Path):
    write_clip(tmp_path / "disk2" / "yoga" / "abc_000001_000011.mp4")
    text = "label,youtube_id,time_start,time_end,split\nyoga,abc,1,11,train\n"
    file = write_text(tmp_path / "k" / "train.csv", text)
    (tmp_path / "k" / "videos").mkdir()
    (tmp_path / "k" / "videos" / "more").symlink_to(tmp_path / "disk2")
    found = make_plan(location(file), load_config(ShardConfig, None, [])).manifest
    assert [video.name for video in found.videos] == ["more/yoga/abc_000001_000011.mp4"]
    assert json.dumps(found.missing) == "0"
