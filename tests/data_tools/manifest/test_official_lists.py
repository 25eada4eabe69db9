"""Sources for the official lists of known data sets, for path_label lists and for mmaction2."""

import re
from pathlib import Path
from typing import Any

import pytest

from kinemae.data_tools.command import DataError
from kinemae.data_tools.components import Component, build_component
from kinemae.data_tools.manifest.videos import Manifest
from kinemae.data_tools.sources.base import Source
from tests.source_collections import COLLECTIONS, write_text


def listing(name: str, root: Path, **args: Any) -> Manifest:
    return build_component("kinemae.data_tools.sources", Component(name=name, args=args), Source).list_videos(
        root
    )


def path_label(tmp_path: Path, text: str, **args: Any) -> Manifest:
    return listing("path_label", write_text(tmp_path / "list.txt", text), max_missing_fraction=1.0, **args)


def test_the_label_follows_the_last_space(tmp_path: Path):
    found = path_label(tmp_path, '/data/a b  c.mp4 10\n"d e.mp4" 9\r\n\n"f ""g"".mp4" 010\n')
    assert [(video.name, video.label) for video in found.videos] == [
        ("/data/a b  c.mp4", "10"),
        ("d e.mp4", "9"),
        ('f "g".mp4', "10"),
    ]
    assert found.videos[0].path == Path("/data/a b  c.mp4")
    assert found.videos[1].path == tmp_path / "d e.mp4"


@pytest.mark.parametrize(
    "line, message",
    [
        ("a.mp4", r"list.txt, line 2: expected PATH LABEL, got 'a.mp4'"),
        ("a b.mp4", r"list.txt, line 2: expected a label that is a whole number, 0 or more, got 'b.mp4'"),
        ("a.mp4 1.5", r"line 2: expected a label that is a whole number, 0 or more, got '1.5'"),
        ("a.mp4 -1", r"line 2: expected a label that is a whole number, 0 or more, got '-1'"),
        ("a.mp4 7", r"line 2: expected a label from 0 to 6 .source.args.num_classes=7., got 7"),
        ("b.mp4 1", r"line 2: expected each video once, got b.mp4, which is also in line 1"),
    ],
)
def test_an_invalid_line_is_an_error_that_states_it(tmp_path: Path, line: str, message: str):
    with pytest.raises(DataError, match=message):
        path_label(tmp_path, f"b.mp4 6\n{line}\n", num_classes=7)


def test_a_delimiter_is_one_character(tmp_path: Path):
    [video] = path_label(tmp_path, "a b.mp4, 3\n", delimiter=",").videos
    assert (video.name, video.label) == ("a b.mp4", "3")
    with pytest.raises(ValueError, match=r"source.args.delimiter must be one character, got ', '"):
        path_label(tmp_path, "", delimiter=", ")


def test_a_video_in_two_splits_is_an_error_that_names_both_lists(tmp_path: Path):
    write_text(tmp_path / "train.csv", "a.mp4 0\n")
    write_text(tmp_path / "test.csv", "b.mp4 0\na.mp4 0\n")
    with pytest.raises(
        DataError, match=r"train.csv, line 1: .* got a.mp4, which is also in .*test.csv, line 2"
    ):
        listing("path_label", tmp_path, max_missing_fraction=1.0)


def test_a_folder_needs_one_list_per_split(tmp_path: Path):
    with pytest.raises(DataError, match=r"expected train.csv .*, got no list"):
        listing("path_label", tmp_path)
    write_text(tmp_path / "val.csv", "")
    write_text(tmp_path / "valid.txt", "")
    with pytest.raises(DataError, match=r"expected one list for each split, got two, one of them val.csv"):
        listing("path_label", tmp_path)


def test_mmaction2_reads_videos_and_folders_of_images(tmp_path: Path):
    write_text(tmp_path / "clips" / "a b.mp4", "")
    write_text(tmp_path / "clips" / "v" / "flow_0.png", "")
    found = listing("mmaction2", write_text(tmp_path / "one.txt", "a b.mp4 4\n"), videos="clips")
    assert [(video.name, video.label, video.frames) for video in found.videos] == [("a b.mp4", "4", ())]
    arguments = {"rawframes": True, "filename_tmpl": "flow_{:d}.png", "fps": 10}
    [video] = listing("mmaction2", write_text(tmp_path / "l", "v 1 4"), videos="clips", **arguments).videos
    assert (video.frames, video.fps, video.path) == (("flow_0.png",), 10.0, tmp_path / "clips" / "v")


@pytest.mark.parametrize(
    "text, args, message",
    [
        (
            "v 3 1\n",
            {},
            r"list.txt, line 1: expected a video file, got the folder .*v; .* set source.args.rawframes=true",
        ),
        (
            "a.mp4 3 1\n",
            {"rawframes": True},
            r"line 1: expected a folder of images, got the file .*a.mp4; .* remove source.args.rawframes",
        ),
        ("v 1\n", {"rawframes": True}, r"line 1: expected PATH TOTAL_FRAMES LABEL, got 'v 1'"),
        ("v 0 1\n", {"rawframes": True}, r"line 1: expected a number of frames, 1 or more, got '0'"),
        (
            "v 3 1\n",
            {"rawframes": True},
            r"line 1: expected the image .*img_00003.jpg, got no file; fix: check the number of frames",
        ),
        ("a.mp4\n", {}, r"line 1: expected PATH LABEL, got 'a.mp4'"),
        ("a.mp4 9\n", {"num_classes": 9}, r"line 1: expected a label from 0 to 8"),
    ],
)
def test_an_invalid_mmaction2_list_is_an_error(tmp_path: Path, text: str, args: dict[str, Any], message: str):
    write_text(tmp_path / "v" / "img_00001.jpg", "")
    write_text(tmp_path / "a.mp4", "")
    with pytest.raises(DataError, match=message):
        listing("mmaction2", write_text(tmp_path / "list.txt", text), **args)


def test_mmaction2_lists_need_one_split_each(tmp_path: Path):
    with pytest.raises(DataError, match=r"expected lists such as ucf101_train_split_1_videos.txt, got none"):
        listing("mmaction2", tmp_path)
    write_text(tmp_path / "ucf101_train_split_1_videos.txt", "")
    write_text(tmp_path / "ucf101_train_split_2_videos.txt", "")
    with pytest.raises(
        DataError, match=r"expected one list per split, got .*train_split_2_videos.txt and .*split_1"
    ):
        listing("mmaction2", tmp_path)


@pytest.mark.parametrize(
    "name, args, message",
    [
        ("mmaction2", {"fps": 0}, "source.args.fps must be above 0, got 0"),
        (
            "mmaction2",
            {"filename_tmpl": "img.jpg"},
            r"filename_tmpl must hold one number format such as {:05}, got 'img.jpg'",
        ),
        ("mmaction2", {"filename_tmpl": "{0.x:5}"}, "filename_tmpl must hold one"),
        ("frames", {"fps": -1.0}, "source.args.fps must be above 0, got -1.0"),
        ("ucf101", {"fold": 4}, "source.args.fold must be 1, 2 or 3, got 4"),
        ("hmdb51", {"fold": 0}, "source.args.fold must be 1, 2 or 3, got 0"),
        (
            "webdataset",
            {"label": "txt.clas"},
            "label must be auto, cls, txt, none or json.FIELD, or NAME.cls or NAME.txt, got 'txt.clas'",
        ),
        (
            "webdataset",
            {"columns": ["width"]},
            "columns must not hold names of the index's own columns, got 'width'",
        ),
        ("webdataset", {"num_classes": -1}, "classes must be 0 .* or more, got -1"),
    ],
)
def test_a_wrong_argument_is_named(name: str, args: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        build_component("kinemae.data_tools.sources", Component(name=name, args=args), Source)


def test_kinetics_groups_the_clips_of_a_video_and_counts_unlisted_files(tmp_path: Path):
    root = COLLECTIONS["kinetics"](tmp_path).root
    found = listing("kinetics", root)
    assert [video.group for video in found.videos] == ["-_a1b2c3d4e", "zz_y1b2c3d4e"]
    assert (found.ignored, found.missing) == (1, 0)
    single = listing("kinetics", root / "annotations" / "val.csv")
    assert [video.split for video in single.videos] == ["validation"]


def test_missing_kinetics_videos_are_counted_up_to_a_fraction(tmp_path: Path):
    root = COLLECTIONS["kinetics"](tmp_path).root
    with (root / "annotations" / "val.csv").open("a") as file:
        file.write("yoga,lost_video_,100,110,validate\n")
    found = listing("kinetics", root)
    assert (found.missing, found.videos[-1].name) == (1, "lost_video__000100_000110.mp4")
    with pytest.raises(
        DataError,
        match=r"a file for each of 3 videos, got none for 1, first .*val.csv, line 3: .*lost_video_",
    ):
        listing("kinetics", root, max_missing_fraction=0.3)


def test_kinetics_prefers_the_copy_in_the_class_folder(tmp_path: Path):
    root = COLLECTIONS["kinetics"](tmp_path).root
    videos = root / "videos"
    write_text(videos / "yoga" / "-_a1b2c3d4e_000010_000020.mp4", "")
    assert listing("kinetics", root).videos[0].name.startswith("train/playing chess/")
    write_text(videos / "playing_chess" / "-_a1b2c3d4e_000010_000020.mkv", "")
    with pytest.raises(
        DataError, match=r"train.csv, line 2: expected one file of that name, got .* and .*; fix: remove one"
    ):
        listing("kinetics", root)


@pytest.mark.parametrize(
    "text, message",
    [
        ("label,youtube_id,split\n", r"x.csv, line 1: expected label,youtube_id,time_start,time_end,split"),
        ("youtube_id,time_start,time_end,split\na,1\n", r"line 2: expected as many cells as in the header"),
        (
            "youtube_id,time_start,time_end,split\na,1,2,dev\n",
            r"line 2: expected the split train, validate or test, got 'dev'",
        ),
        (
            'youtube_id,time_start,time_end,split\n"a,1,2,dev\n',
            r"expected csv, got invalid text: unexpected end of data",
        ),
        (
            "youtube_id,time_start,time_end,split\na,1,inf,train\n",
            r"line 2: expected seconds in time_end",
        ),
    ],
)
def test_an_invalid_kinetics_csv_is_an_error(tmp_path: Path, text: str, message: str):
    with pytest.raises(DataError, match=message):
        listing("kinetics", write_text(tmp_path / "x.csv", text))


def test_ssv2_classes_keep_their_numbers_and_captions_become_a_column(tmp_path: Path):
    found = listing("ssv2", COLLECTIONS["ssv2"](tmp_path).root)
    assert found.classes == ("Dropping something", "Holding something")
    assert [video.extra for video in found.videos] == [
        {"caption": "holding a cup"},
        {"caption": "dropping it"},
        {},
    ]


@pytest.mark.parametrize(
    "file, text, message",
    [
        (
            "labels.json",
            '{"Holding something": "2"}',
            r"labels.json: expected classes numbered 0, 1, 2, ..., got",
        ),
        ("labels.json", "[1]", r"labels.json: expected a json object"),
        ("train.json", '{"id": "1"}', r"train.json: expected a json list"),
        ("train.json", "[\n{", r"train.json, line 2: expected JSON, got invalid text"),
        ("train.json", '[{"id": "../1"}]', r"train.json, entry 1: expected {\"id\": \"...\", \"template\""),
        ("2-train.json", "[]", r"expected one train.json, got 2-train.json and train.json; fix: remove one"),
    ],
)
def test_invalid_ssv2_files_are_errors(tmp_path: Path, file: str, text: str, message: str):
    root = COLLECTIONS["ssv2"](tmp_path).root
    write_text(root / "labels" / file, text)
    with pytest.raises(DataError, match=message):
        listing("ssv2", root)


def test_missing_ssv2_files_are_an_error(tmp_path: Path):
    with pytest.raises(DataError, match=r"expected labels.json of ssv2, got none"):
        listing("ssv2", tmp_path)
    with pytest.raises(DataError, match=r"expected the folder with labels/ and the videos of ssv2"):
        listing("ssv2", write_text(tmp_path / "x.json", "[]"))


def test_ucf101_groups_and_classes_are_the_official_ones(tmp_path: Path):
    found = listing("ucf101", COLLECTIONS["ucf101"](tmp_path).root)
    assert found.classes == ("Archery", "YoYo")
    assert [video.group for video in found.videos] == ["YoYo_g08", "Archery_g01", "YoYo_g01"]


@pytest.mark.parametrize(
    "file, text, message",
    [
        ("classInd.txt", "0 Archery\n", r"classInd.txt, line 1: expected `1 CLASS`, got '0 Archery'"),
        ("trainlist01.txt", "x.avi 1\n", r"trainlist01.txt, line 1: expected CLASS/v_CLASS_gXX_cXX.avi"),
        (
            "testlist01.txt",
            "Run/v_Run_g01_c01.avi\n",
            r"testlist01.txt, line 1: expected a class of classInd.txt, got 'Run'",
        ),
    ],
)
def test_invalid_ucf101_lists_are_errors(tmp_path: Path, file: str, text: str, message: str):
    root = COLLECTIONS["ucf101"](tmp_path).root
    write_text(root / "ucfTrainTestlist" / file, text)
    with pytest.raises(DataError, match=message):
        listing("ucf101", root)


def test_the_fold_selects_the_lists(tmp_path: Path):
    with pytest.raises(
        DataError, match=r"trainlist02.txt: expected a readable list, got an error .No such file"
    ):
        listing("ucf101", COLLECTIONS["ucf101"](tmp_path / "ucf").root, fold=2)
    with pytest.raises(
        DataError, match=r"expected the split files CLASS_test_split3.txt of HMDB51, got none"
    ):
        listing("hmdb51", COLLECTIONS["hmdb51"](tmp_path / "hmdb").root, fold=3)


def test_hmdb51_ignores_videos_of_neither_split(tmp_path: Path):
    found = listing("hmdb51", COLLECTIONS["hmdb51"](tmp_path).root)
    assert (found.ignored, found.classes) == (1, ("run", "wave"))


def test_images_are_ordered_by_their_numbers(tmp_path: Path):
    for number in (10, 9, 1):
        write_text(tmp_path / "v" / f"shot 7 frame{number}.PNG", "")
    write_text(tmp_path / "v" / "depth1.png", "")
    write_text(tmp_path / ".cache" / "w" / "1.png", "")
    [video] = listing("frames", tmp_path, pattern="shot*", fps=12).videos
    assert video.frames == tuple(f"shot 7 frame{number}.PNG" for number in (1, 9, 10))
    assert (video.name, video.label, video.split, video.fps) == ("v", None, None, 12.0)
    assert listing("frames", tmp_path, pattern="shot*").ignored == 1


def test_folders_of_images_may_be_nested_in_a_class(tmp_path: Path):
    write_text(tmp_path / "run" / "day 1" / "v" / "1.jpg", "")
    write_text(tmp_path / "train" / "v" / "1.jpg", "")  # a class next to others, not a split
    found = listing("frames", tmp_path)
    assert [(video.name, video.label) for video in found.videos] == [
        ("run/day 1/v", "run"),
        ("train/v", "train"),
    ]


@pytest.mark.parametrize(
    "names, message",
    [
        (["1.jpg"], "expected one folder of images per video, got images directly in it"),
        (["a/v/1.jpg", "w/1.jpg"], "expected all videos in class folders or none, got w outside of them"),
        (
            ["v/img_1.jpg", "v/flow_x_1.jpg"],
            "expected images of one kind, got flow_x_1.jpg and img_1.jpg",
        ),
    ],
)
def test_an_ambiguous_folder_of_images_is_an_error(tmp_path: Path, names: list[str], message: str):
    for name in names:
        write_text(tmp_path / name, "")
    with pytest.raises(DataError, match=re.escape(message)):
        listing("frames", tmp_path)
