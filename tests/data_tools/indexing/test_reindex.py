"""Shards made by `shard`: an index rebuilt from the tars equals the original one."""

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

from kinemae.data_tools.__main__ import PROGRAM
from kinemae.data_tools.command import run_program
from kinemae.data_tools.index import COLUMNS, INDEX_NAME, ShardIndex, open_index, write_removed
from kinemae.data_tools.sharding.tar_writer import ShardSample, write_shard
from kinemae.data_tools.storage.location import Location, location
from tests.sharding import encoded, moving, shard
from tests.source_collections import write_text


def index(*arguments: object) -> int:
    return run_program(PROGRAM, ["index", *map(str, arguments), "workers=1"])


def written(folder: Path, name: str, *, classes: str = "", seed: int = 0) -> Path:
    """Shard six videos in the default layout, with groups, parts and additional columns."""
    for number in range(3):
        folder.joinpath("v").mkdir(parents=True, exist_ok=True)
        (folder / "v" / f"{number}.mp4").write_bytes(encoded(moving(20 + number + seed, 32, 48)))
    rows = [
        f"v/{number}.mp4,{'zab'[number]},g{number},{start},{start + 0.4},{number / 2},{'' if number else 'x'}"
        for number in range(3)
        for start in (0, 0.4)
    ]
    table = write_text(folder / "list.csv", "\n".join(["path,label,group,start_s,end_s,score,note", *rows]))
    options = ["validation_fraction=0", "samples_per_shard=4", "layout.args.every=2"]
    options += [f"classes={classes}"] if classes else []
    assert shard(table, folder / name, *options) == 0
    return folder / name


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("ours")
    classes = write_text(root / "classes.txt", "z\nunused\nb\na\n")
    return written(root, "out", classes=str(classes))


def rows(data_set: ShardIndex) -> dict[str, list[object]]:
    return {name: data_set.column(name).tolist() for name in (*COLUMNS.names, *data_set.extra)}


def test_a_lost_index_is_rebuilt_from_the_tars(ours: Path, tmp_path: Path):
    before = open_index(ours / "train")
    assert set(before.column("reference_stride").tolist()) == {2}
    assert set(before.column("frame_step").tolist()) == {2}
    assert before.column("start_s").tolist().count(0.0) == 3
    for probe in ("full", "header", "stored"):
        assert index(ours, tmp_path / probe, f"probe={probe}") == 0
        after = open_index(tmp_path / probe / "train")
        assert rows(after) == rows(before)
        assert after.classes == before.classes
        assert after.files["index"].sha256 == before.files["index"].sha256  # the same bytes
        is_read = probe != "stored"
        assert (after.fingerprint == before.fingerprint) == is_read
        assert [shard.bytes for shard in after.shards] == [shard.bytes for shard in before.shards]
        assert [shard.sha256 != "" for shard in after.shards] == [is_read] * len(after.shards)


def test_stored_columns_are_read_without_the_videos(
    ours: Path, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    names = [shard.name for shard in open_index(ours / "train").shards]
    for name in names:
        location(f"{bucket}/set/{name}").upload(ours / "train" / name)
    monkeypatch.setattr(Location, "download", None)
    assert index(f"{bucket}/set", tmp_path / "out", "probe=stored", f"classes={ours}") == 0
    assert rows(open_index(tmp_path / "out")) == rows(open_index(ours / "train"))


def test_videos_of_others_have_no_stored_columns(
    ours: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    other = one_sample(tmp_path / "x", ours, kinemae_format="left out")
    assert index(other, "probe=stored") == 3
    assert "expected kinemae_format in its .json, which `shard` writes, got none" in capsys.readouterr().err


def test_removed_samples_do_not_come_back(ours: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert index(ours, tmp_path / "out", "probe=stored") == 0
    data_set = open_index(tmp_path / "out" / "train")
    write_removed(data_set.folder, data_set.state, np.array([1]), data_set.shards)
    assert index(ours, tmp_path / "out", "probe=stored") == 2
    assert "expected a data set without removed samples, got 1" in capsys.readouterr().err


def test_a_lost_index_is_rebuilt_in_place(ours: Path, capsys: pytest.CaptureFixture[str]):
    before = (ours / "train" / INDEX_NAME).read_bytes()
    assert index(ours) == 2
    assert "expected a new folder, got a data set made by data_tools shard" in capsys.readouterr().err
    (ours / "train" / INDEX_NAME).unlink()
    assert index(ours) == 0
    assert (ours / "train" / INDEX_NAME).read_bytes() == before
    assert run_program(PROGRAM, ["verify", str(ours / "train"), "workers=1"]) == 0


def test_another_column_can_be_the_label_of_an_index(ours: Path, tmp_path: Path):
    before = open_index(ours / "train")
    assert index(ours, tmp_path / "other", "label=json.group") == 0
    after = open_index(tmp_path / "other" / "train")
    assert after.classes == ("g0", "g1", "g2")
    assert [after.classes[label] for label in after.column("label").tolist()] == before.column(
        "group"
    ).tolist()
    changed = {"label"}
    first, second = rows(before), rows(after)
    assert {name for name in first if first[name] != second[name]} == changed


def test_data_sets_of_shard_are_merged(ours: Path, tmp_path: Path):
    merged = tmp_path / "merged"
    merged.mkdir()
    (merged / "a").symlink_to(ours)
    other = written(tmp_path / "b", "out", seed=1)
    (merged / "b").symlink_to(other)
    assert index(merged, tmp_path / "index") == 0
    parts = [rows(open_index(folder / "train")) for folder in (ours, other)]
    together = open_index(tmp_path / "index" / "train")
    assert together.classes == ("a", "b", "z")  # renumbered: the two data sets differ
    found = rows(together)
    for name in (
        "name",
        "length",
        "crc32",
        "content",
        "reference_stride",
        "reference_phase",
        "frame_step",
        "start_s",
        "score",
    ):
        assert found[name] == parts[0][name] + parts[1][name]
    assert found["key"][0] == f"a/train/shard-000000.tar/{parts[0]['key'][0]}"
    assert len(set(map(str, found["key"]))) == len(together) == 12


def test_classes_without_a_video_keep_their_numbers_if_there_is_a_class_list(
    ours: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    shards = tmp_path / "moved" / "train"
    shards.mkdir(parents=True)
    for tar in (ours / "train").glob("*.tar"):
        (shards / tar.name).write_bytes(tar.read_bytes())
    assert index(tmp_path / "moved", tmp_path / "one") == 0
    assert "class 1 has neither a video nor a name: classes are renumbered; classes=OUT" in str(
        capsys.readouterr().err
    )
    assert open_index(tmp_path / "one" / "train").classes == ("a", "b", "z")
    assert index(tmp_path / "moved", tmp_path / "two", f"classes={ours}") == 0
    assert open_index(tmp_path / "two" / "train").classes == ("z", "unused", "b", "a")


def described(tar: Path) -> dict[str, object]:
    with tarfile.open(tar) as opened:
        member = next(member for member in opened if member.name.endswith(".json"))
        content = opened.extractfile(member)
        assert content is not None
        return json.loads(content.read())


def one_sample(folder: Path, ours: Path, **changes: object) -> Path:
    """Write a shard with the first video and a changed json."""
    tar = ours / "train" / "shard-000000.tar"
    sample = open_index(ours / "train").sample(0)
    description = {**described(tar), **changes}
    folder.mkdir(parents=True)
    wanted = {name: value for name, value in description.items() if value != "left out"}
    write_shard(
        folder,
        0,
        [
            ShardSample(
                key=sample.key,
                description=json.dumps(wanted).encode(),
                extension="mp4",
                file=tar,
                offset=sample.offset,
                length=sample.length,
                crc32=sample.crc32,
            )
        ],
    )
    return folder


def test_the_json_holds_every_column_except_the_position_in_the_tar(ours: Path):
    fields = set(described(ours / "train" / "shard-000000.tar"))
    assert {*COLUMNS.names} - fields == {"key", "shard", "offset", "length"}


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"frames": "ten"}, "expected frames in its .json as `shard` writes it, got 'ten'; fix: download"),
        ({"content": "left out"}, "expected content in its .json as `shard` writes it, got None"),
        ({"width": True}, "expected width in its .json as `shard` writes it, got True"),
        ({"start_s": float("nan")}, "expected start_s in its .json as `shard` writes it, got nan"),
        ({"crc32": 1}, "its checksum differs from the one in its .json"),
    ],
)
def test_an_invalid_json_of_shard_is_an_error_that_names_the_field(
    ours: Path, tmp_path: Path, changes: dict[str, object], message: str, capsys: pytest.CaptureFixture[str]
):
    assert index(one_sample(tmp_path / "x", ours, **changes)) == 3
    assert message in capsys.readouterr().err


def test_shards_without_the_format_number_are_read_as_any_webdataset(ours: Path, tmp_path: Path):
    old = one_sample(tmp_path / "x", ours, kinemae_format="left out", crc32="left out", content="left out")
    assert index(old, "group=group", "columns=[score]") == 0
    data_set = open_index(old)
    first = open_index(ours / "train").sample(0)
    assert data_set.classes == (open_index(ours / "train").classes[first.label],)
    assert (data_set.sample(0).group, data_set.sample(0).reference_stride) == (first.group, 1)


def test_shards_with_and_without_the_format_number_are_an_error_with_a_fix(
    ours: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    one_sample(tmp_path / "x" / "0", ours)
    one_sample(tmp_path / "x" / "1", ours, kinemae_format="left out")
    assert index(tmp_path / "x") == 3
    assert (
        "expected kinemae_format=1 in its .json as in the first, got None; fix: add label=json.label"
        in str(capsys.readouterr().err)
    )
    assert index(tmp_path / "x", "label=json.label") == 0
