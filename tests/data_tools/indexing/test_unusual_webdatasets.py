"""Unusual WebDatasets: links, dots in names, late labels, compressed shards."""

import io
import json
import tarfile
from pathlib import Path

import pytest

from kinemae.data_tools.__main__ import PROGRAM
from kinemae.data_tools.command import DataError, run_program
from kinemae.data_tools.index import ShardIndex, open_index
from kinemae.data_tools.indexing.shard_list import find_shards
from kinemae.data_tools.indexing.tar_members import read_members
from kinemae.data_tools.storage.location import location
from kinemae.data_tools.stream.video_reader import read_video
from tests.source_collections import write_clip, write_tar, write_text


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    folder = tmp_path_factory.mktemp("clips")
    return [write_clip(folder / f"{number}.mp4", number) for number in range(4)]


def index(*arguments: object) -> int:
    return run_program(PROGRAM, ["index", *map(str, arguments), "workers=1"])


def labels(data_set: ShardIndex) -> dict[str, str]:
    rows = [data_set.sample(position) for position in range(len(data_set))]
    return {row.key: data_set.classes[row.label] if row.label >= 0 else "" for row in rows}


def rejected(folder: Path) -> dict[str, str]:
    lines = (folder / "rejected.jsonl").read_text().splitlines()
    return {entry["path"]: entry["reason"] for entry in map(json.loads, lines)}


def described(**fields: object) -> bytes:
    return json.dumps(fields).encode()


def write_links(path: Path, clips: list[bytes]) -> None:
    """Write two videos, hard links to them and to each other, and symbolic links."""
    with tarfile.open(path, "w") as tar:
        for name, content in (("d/a.mp4", clips[0]), ("d/a.cls", b"1"), ("b.mp4", clips[1]), ("b.cls", b"2")):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        links = (
            ("c.mp4", tarfile.LNKTYPE, "d/a.mp4"),
            ("e.mp4", tarfile.LNKTYPE, "c.mp4"),
            ("f.mp4", tarfile.SYMTYPE, "/data/f.mp4"),
            ("g.mp4", tarfile.LNKTYPE, "not/there.mp4"),
        )
        for name, kind, target in links:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            tar.addfile(info)
        for name in ("c.cls", "e.cls", "f.cls", "g.cls"):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.LNKTYPE, "d/a.cls"
            tar.addfile(info)


def test_hard_links_are_read_and_symbolic_links_are_rejected(tmp_path: Path, clips: list[bytes]):
    write_links(tmp_path / "x.tar", clips)
    assert index(tmp_path) == 0
    data_set = open_index(tmp_path)
    assert labels(data_set) == {"d/a": "1", "c": "1", "e": "1", "b": "2"}
    for position in range(len(data_set)):
        sample = data_set.sample(position)
        assert read_video(data_set, sample) == clips[1 if sample.key == "b" else 0]
    assert rejected(tmp_path) == {
        "f": "f.mp4 is a link to /data/f.mp4, which is not in the tar",
        "g": "g.mp4 is a link to not/there.mp4, which is not in the tar",
    }
    with (tmp_path / "x.tar").open("rb") as file:
        assert {member.link for member in read_members(file, "x")} == {"", "/data/f.mp4", "not/there.mp4"}


def test_labels_are_found_if_names_hold_dots(tmp_path: Path, clips: list[bytes]):
    names = ("v1.d/Track 2.0 (Clean).mp4", "v1.d/Take 1.b.c.mp4", "plain.mp4")
    members = [(name, clips[number]) for number, name in enumerate(names)]
    members += [(name.replace(".mp4", ".cls"), b"%d" % number) for number, name in enumerate(names)]
    members += [(name.replace(".mp4", ".json"), described(who=name)) for name in names]
    write_tar(tmp_path / "x.tar", members)
    assert index(tmp_path, "columns=[who]") == 0
    data_set = open_index(tmp_path)
    assert labels(data_set) == {"v1.d/Track 2": "0", "v1.d/Take 1": "1", "plain": "2"}
    assert data_set.column("who").tolist() == list(names)


@pytest.mark.parametrize("rule", ["auto", "fine.cls", "FINE.cls"])
def test_a_member_name_cls_gives_the_label(tmp_path: Path, clips: list[bytes], rule: str):
    write_tar(tmp_path / "x.tar", [("a.mp4", clips[0]), ("a.fine.cls", b"7"), ("a.txt", b"a man")])
    assert index(tmp_path, f"label={rule}") == 0
    assert labels(open_index(tmp_path)) == {"a": "7"}


def test_labels_are_found_if_the_first_one_is_missing(
    tmp_path: Path, clips: list[bytes], capsys: pytest.CaptureFixture[str]
):
    values = (None, "b", 2.0)
    members = [(f"{n}.json", described(label=value)) for n, value in enumerate(values)]
    write_tar(tmp_path / "x.tar", [*members, *((f"{n}.mp4", clips[n]) for n in range(3))])
    assert index(tmp_path) == 3
    message = capsys.readouterr().err
    assert "x.tar, 0: expected a label from label=json.label" in message
    assert "fix: set missing_labels=reject to skip such samples, or label=none for no labels" in message
    assert index(tmp_path, "missing_labels=reject") == 0
    assert labels(open_index(tmp_path)) == {"1": "b", "2": "2"}
    assert rejected(tmp_path) == {"0": "it has no label from label=json.label"}
    sharding = ["shard", str(tmp_path), str(tmp_path / "out"), "--dry-run", "source.name=webdataset"]
    assert run_program(PROGRAM, sharding) == 3
    assert "fix: set source.args.missing_labels=reject to skip such samples" in capsys.readouterr().err
    assert run_program(PROGRAM, [*sharding, "source.args.missing_labels=reject"]) == 0
    assert "1 samples are skipped, first x.tar, 0: it has no label from" in capsys.readouterr().err
    assert index(tmp_path, "missing_labels=drop") == 2
    write_tar(tmp_path / "x.tar", [("a.mp4", clips[0]), ("a.json", described(label=1)), ("b.mp4", clips[1])])
    assert index(tmp_path) == 3
    assert (
        "x.tar, b: expected a .json with label, group or columns, got none; fix: " in capsys.readouterr().err
    )
    assert index(tmp_path, "missing_labels=reject") == 0
    assert rejected(tmp_path) == {"b": "it has no label from label=json.label"}


def test_members_that_no_rule_reads_are_counted(
    tmp_path: Path, clips: list[bytes], capsys: pytest.CaptureFixture[str]
):
    members = [("a.mp4", clips[0]), ("a.txt", b"a man"), ("a.json", described(score=1)), ("b.mp4", clips[1])]
    write_tar(tmp_path / "x.tar", [*members, ("b.flow.npy", b"")])
    warning = "no labels were found; members that no rule reads: 1 .json, 1 .npy, 1 .txt; label=json.FIELD"
    for arguments in ([], ["--dry-run"]):
        assert index(tmp_path, *arguments) == 0
        assert warning in capsys.readouterr().err
    assert index(tmp_path, "label=none") == 0
    assert "no labels were found" not in capsys.readouterr().err


def test_spellings_of_one_number_are_one_class_and_a_missing_value_is_an_error(
    tmp_path: Path, clips: list[bytes], capsys: pytest.CaptureFixture[str]
):
    write_tar(tmp_path / "0.tar", [("a.mp4", clips[0]), ("a.cls", b"1.0")])
    write_tar(tmp_path / "1.tar", [("b.mp4", clips[1]), ("b.cls", b"1")])
    assert index(tmp_path, "--dry-run", "--json") == 0
    assert json.loads(capsys.readouterr().out)["classes"] == ["1"]
    assert index(tmp_path) == 0
    assert open_index(tmp_path).classes == ("1",)
    write_tar(tmp_path / "1.tar", [("b.mp4", clips[1]), ("b.cls", b"nan")])
    assert index(tmp_path) == 3
    assert "1.tar, b: expected a label, got 'nan', which means a missing value" in capsys.readouterr().err


@pytest.mark.parametrize("ending", [".tar.gz", ".tgz", ".tar.zst", ".txz"])
def test_a_compressed_shard_among_plain_ones_is_an_error(tmp_path: Path, ending: str):
    write_tar(tmp_path / "0.tar", [])
    write_text(tmp_path / f"1{ending}", "")
    message = rf"1{ending}: expected plain tars, .* got 1 compressed and 1 plain ones; fix: unpack it"
    with pytest.raises(DataError, match=message):
        find_shards(tmp_path)
    assert [shard.name for shard in find_shards(str(tmp_path / "*.tar"))] == ["0.tar"]
    write_tar(tmp_path / "1.tar", [])  # both the compressed and the unpacked tar
    assert [shard.name for shard in find_shards(tmp_path)] == ["0.tar", "1.tar"]


def test_a_compressed_tar_with_the_extension_tar_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    with tarfile.open(tmp_path / "x.tar", "w:xz"):
        pass
    assert index(tmp_path) == 3
    assert (
        "x.tar: expected a plain tar, for reads of single videos, got a compressed one"
        in capsys.readouterr().err
    )


def test_shards_behind_links_and_nested_split_folders_are_found(tmp_path: Path):
    write_tar(tmp_path / "disk2" / "0.tar", [])
    write_tar(tmp_path / "set" / "data" / "train" / "0.tar", [])
    (tmp_path / "set" / "data" / "val").symlink_to(tmp_path / "disk2")
    found = find_shards(location(tmp_path / "set"))
    assert [(shard.name, shard.split) for shard in found] == [
        ("data/train/0.tar", "train"),
        ("data/val/0.tar", "validation"),
    ]


def test_a_data_set_without_videos_is_an_error_with_a_fix(
    tmp_path: Path, clips: list[bytes], capsys: pytest.CaptureFixture[str]
):
    write_tar(tmp_path / "0.tar", [("a.film", clips[0]), ("a.cls", b"1")])
    sharding = ["shard", str(tmp_path / "0.tar"), str(tmp_path / "out"), "--dry-run"]
    assert run_program(PROGRAM, sharding) == 3
    assert (
        "expected members such as KEY.mp4, got no sample with a video; fix: set source.args.video to the"
        in str(capsys.readouterr().err)
    )
    assert run_program(PROGRAM, [*sharding, "source.args.video=film"]) == 0
