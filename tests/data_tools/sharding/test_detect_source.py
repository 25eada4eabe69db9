"""Detection of the source, and errors and hints if it finds no videos."""

import logging
from pathlib import Path

import pytest

from kinemae.data_tools.__main__ import PROGRAM
from kinemae.data_tools.command import DataError, run_program
from kinemae.data_tools.config import load_config
from kinemae.data_tools.index import open_index
from kinemae.data_tools.manifest.videos import Manifest
from kinemae.data_tools.sharding.detect_source import check_not_empty, detect_source
from kinemae.data_tools.sharding.plan import ShardConfig
from kinemae.data_tools.storage.location import location
from kinemae.data_tools.stream.video_reader import read_video
from tests.faulty_server import faulty_server
from tests.source_collections import COLLECTIONS, write_clips, write_tar, write_text


def shard(*arguments: object) -> int:
    return run_program(PROGRAM, ["shard", *map(str, arguments), "validation_fraction=0", "workers=1"])


def videos_in(folder: Path) -> dict[str, bytes]:
    index = open_index(folder)
    samples = [index.sample(position) for position in range(len(index))]
    return {sample.name: read_video(index, sample) for sample in samples}


@pytest.mark.parametrize(
    "name, source",
    [
        ("", "folder"),
        ("a.csv", "csv"),
        ("b.JSONL", "jsonl"),
        ("c.tar", "webdataset"),
        ("c-{0..1}.tar", "webdataset"),
        ("c-*.tar", "webdataset"),
    ],
)
def test_a_source_is_detected_by_the_path(tmp_path: Path, name: str, source: str):
    if name and "-" not in name:
        write_text(tmp_path / name, "")
    assert detect_source(location(tmp_path / name)).name == source
    if name:
        expected = source if source == "webdataset" else "csv" if "csv" in name else "jsonl"
        assert detect_source(location(f"s3://bucket/{name}")).name == expected


def test_a_path_without_a_source_is_an_error_with_a_fix(tmp_path: Path):
    with pytest.raises(DataError, match=r"SOURCE .*lost: expected a folder of videos, or a csv"):
        detect_source(location(tmp_path / "lost"))
    write_text(tmp_path / "list.xlsx", "")
    with pytest.raises(
        ValueError,
        match=r"expected a folder or a file with the extension .csv, .jsonl, .tar, .* save the table",
    ):
        detect_source(location(tmp_path / "list.xlsx"))
    with pytest.raises(
        ValueError, match=r"s3://b/x: expected a file with the extension .* of tars source.name=webdataset"
    ):
        detect_source(location("s3://b/x"))


def test_a_folder_without_videos_is_an_error_with_a_hint(tmp_path: Path):
    empty = Manifest(videos=(), ignored=3)
    with pytest.raises(DataError, match=r"got no video and 3 other files$"):
        check_not_empty(location(tmp_path), empty)
    write_text(tmp_path / "v" / "1.jpg", "")
    with pytest.raises(DataError, match=r"it holds images such as 1.jpg; fix: set source.name=frames"):
        check_not_empty(location(tmp_path), empty)
    write_tar(tmp_path / "data" / "train-0.tar", [])
    with pytest.raises(
        DataError, match=r"it holds tars such as data/train-0.tar; fix: set source.name=webdataset"
    ):
        check_not_empty(location(tmp_path), empty)
    write_text(tmp_path / "train" / "dataset.json", "{}")
    with pytest.raises(DataError, match=r"it is a data set already; fix: train on it, data.shards=.*/train$"):
        check_not_empty(location(tmp_path), empty)
    with pytest.raises(DataError, match=r"SOURCE s3://b/x.tar: .*, got no video and 3 other files$"):
        check_not_empty(location("s3://b/x.tar"), empty)


def test_a_webdataset_in_a_bucket_is_sharded_like_a_local_one(bucket: str, tmp_path: Path):
    collection = COLLECTIONS["webdataset"](tmp_path / "foreign")
    for name in ("data/train-0.tar", "data/test-0.tar"):
        location(f"{bucket}/set/{name}").upload(collection.root / name)
    assert shard(collection.root, tmp_path / "here", "source.name=webdataset") == 0
    assert shard(f"{bucket}/set", tmp_path / "there", "source.name=webdataset") == 0
    for split in ("train", "test"):
        assert videos_in(tmp_path / "here" / split) == videos_in(tmp_path / "there" / split)
        assert open_index(tmp_path / "there" / split).classes == ("0", "1")


@pytest.mark.slow
def test_a_csv_of_urls_is_sharded_and_missing_files_are_rejected(tmp_path: Path):
    write_clips(tmp_path / "web", "a b.mp4", "c.mp4")
    with faulty_server(tmp_path / "web") as server:
        urls = [f"{server.url}/{name}" for name in ("a%20b.mp4", "c.mp4", "lost.mp4")]
        table = write_text(tmp_path / "list.csv", "\n".join(["path", *urls]))
        faults = iter([None, "cut", 503])
        server.fault = lambda method, path: (
            next(faults, None) if method == "GET" and "lost" not in path else None
        )
        assert shard(table, tmp_path / "out", "layout.name=copy") == 0
    assert videos_in(tmp_path / "out" / "train") == {
        urls[0]: (tmp_path / "web" / "a b.mp4").read_bytes(),
        urls[1]: (tmp_path / "web" / "c.mp4").read_bytes(),
    }
    rejected = (tmp_path / "out" / "rejected.jsonl").read_text()
    assert "lost.mp4: there is no such file (HTTP 404)" in rejected
    assert len(rejected.splitlines()) == 1


def refusal(root: Path) -> str:
    with pytest.raises(
        DataError, match=r"expected videos in folders alone, got \d+ lists of videos too"
    ) as caught:
        detect_source(location(root))
    return str(caught.value)


@pytest.mark.parametrize(
    "name, text, advice",
    [
        ("train.csv", "v/a.mp4 0\nv/b.mp4 1\n", "to read train.csv give source.name=path_label"),
        ("val.txt", "v/a.mp4 0 -1\n", "to read val.txt give source.name=path_label"),
        ("lists/k400_train.txt", "v/a.mp4\n", "lists/k400_train.txt source.name=path_label"),
        ("labels.csv", "Path;Label\nv/a.mp4;x\n", "to read labels.csv give SOURCE "),
        ("annotations.csv", "video,class\nv/a.mp4,x\n", "to read annotations.csv give SOURCE "),
        ("list.txt", "v/a.mp4 0\nv/b.mp4 1\n", "list.txt source.name=path_label"),
        ("all.jsonl", '{"path": "v/a.mp4", "label": 1}\n', "to read all.jsonl give SOURCE "),
        ("annotations/k.csv", "label,youtube_id,time_start,time_end,split\n", "give source.name=kinetics"),
        ("ucfTrainTestlist/classInd.txt", "1 A\n", "give source.name=ucf101"),
        ("splits/a_test_split1.txt", "b.avi 1\n", "give source.name=hmdb51"),
    ],
)
def test_a_folder_with_lists_is_an_error_that_states_the_arguments(
    tmp_path: Path, name: str, text: str, advice: str
):
    write_text(tmp_path / "v" / "a.mp4", "")
    write_text(tmp_path / name, text)
    message = refusal(tmp_path)
    assert advice in message
    assert message.endswith("to use the folders give source.name=folder")


@pytest.mark.parametrize(
    "source, lists",
    [
        (
            "ucf101",
            [
                "ucfTrainTestlist/classInd.txt",
                "ucfTrainTestlist/trainlist01.txt",
                "ucfTrainTestlist/testlist01.txt",
            ],
        ),
        ("hmdb51", ["testTrainMulti_7030_splits/a_test_split1.txt"]),
    ],
)
def test_official_lists_in_their_official_folder_are_used(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    source: str,
    lists: list[str],
):
    monkeypatch.setattr(logging.getLogger("kinemae"), "propagate", True)
    caplog.set_level(logging.INFO)
    write_text(tmp_path / "v" / "a.mp4", "")
    for name in lists:
        write_text(tmp_path / name, "a.mp4 1\n")
    assert detect_source(location(tmp_path)).name == source
    assert f"is read by source.name={source}, with its official lists; source.name=folder uses" in caplog.text


def test_ssv2_is_detected_by_its_labels(tmp_path: Path):
    collection = COLLECTIONS["ssv2"](tmp_path / "ssv2")
    assert "labels/labels.json give source.name=ssv2" in refusal(collection.root)


def test_other_text_files_next_to_videos_give_at_most_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(logging.getLogger("kinemae"), "propagate", True)
    write_text(tmp_path / "v" / "a.mp4", "")
    write_text(tmp_path / "README.txt", "Our videos, a.mp4 among them\nare free.\n")
    write_text(tmp_path / "rejected.jsonl", '{"path": "v/a.mp4", "label": "x", "reason": ""}\n')
    assert detect_source(location(tmp_path)).name == "folder"
    assert "README.txt" not in caplog.text
    write_text(tmp_path / "SHA256.txt", "0011 v/a.mp4\n")
    assert detect_source(location(tmp_path)).name == "folder"
    assert "SHA256.txt lists videos and is not read: classes and splits are those of" in caplog.text


@pytest.mark.parametrize(
    "name, text, source",
    [
        ("a.csv", "v/a.mp4 0\n", "path_label"),
        ("a.csv", "v/a.mp4 0 -1\n", "path_label"),
        ("a.csv", "# all\n\nv/a.mp4\n", "path_label"),
        ("a.csv", "path\nv/a.mp4\n", "csv"),
        ("a.csv", "v/a.mp4,0\n", "csv"),
        ("a.csv", "label,youtube_id,time_start,time_end,split\n", "kinetics"),
        ("a.txt", "v/a.mp4 0\n", "path_label"),
        ("a.list", "v/a.mp4 0\n", "path_label"),
        ("a.tsv", "path\tlabel\n", "csv"),
    ],
)
def test_a_list_is_detected_by_its_first_lines(tmp_path: Path, name: str, text: str, source: str):
    assert detect_source(location(write_text(tmp_path / name, text))).name == source


def test_an_empty_list_is_an_error(tmp_path: Path):
    file = write_text(tmp_path / "list.csv", "path,label\n")
    with pytest.raises(DataError, match=r"list.csv: expected a row for each video, got no video"):
        check_not_empty(location(file), Manifest(videos=()))


def output_of(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert shard(*arguments, "/nowhere/out", "--dry-run") == 0
    return capsys.readouterr().err


def test_a_single_class_of_several_folders_gives_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    write_text(tmp_path / "set" / "videos" / "a" / "1.mp4", "")
    assert "all videos are of" not in output_of(capsys, tmp_path / "set")
    write_text(tmp_path / "set" / "videos" / "b" / "2.mp4", "")
    message = "all videos are of the class 'videos', in 2 folders; if those are the classes, set SOURCE to"
    assert message in output_of(capsys, tmp_path / "set")
    assert "all videos are of" not in output_of(capsys, tmp_path / "set" / "videos")


def test_a_split_name_among_class_folders_gives_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write_text(tmp_path / "train" / "1.mp4", "")
    write_text(tmp_path / "dev" / "2.mp4", "")
    assert "train is the name of a split, dev is not: all are classes; for splits rename" in output_of(
        capsys, tmp_path
    )


def test_a_source_is_given_by_name_by_arguments_or_both(tmp_path: Path):
    for override, name, args in (
        ("source=csv", "csv", {}),
        ("source.args.videos=..", "", {"videos": ".."}),
        ("source={name: csv, args: {videos: ..}}", "csv", {"videos": ".."}),
    ):
        source = load_config(ShardConfig, None, [override]).source
        assert source is not None
        assert (source.name, source.args) == (name, args)
    assert load_config(ShardConfig, None, ["source=null"]).source is None
    with pytest.raises(
        ValueError, match=r"SOURCE .*a.mp4: expected .*; for a video set SOURCE to its folder"
    ):
        detect_source(location(write_text(tmp_path / "a.mp4", "")))
