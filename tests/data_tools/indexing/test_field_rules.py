"""WebDatasets as a source: finding tars, and reading labels, groups and columns of samples."""

import json
from pathlib import Path
from typing import Any

import pytest

from kinemae.data_tools.command import DataError
from kinemae.data_tools.indexing.shard_list import find_shards, open_shard
from kinemae.data_tools.manifest.videos import Manifest
from kinemae.data_tools.sources.webdataset import WebdatasetSource
from kinemae.data_tools.storage.location import location
from tests.faulty_server import faulty_server
from tests.source_collections import write_tar, write_text


def found(root: Path | str, **options: bool) -> list[tuple[str, str | None]]:
    return [(shard.name, shard.split) for shard in find_shards(str(root), **options)]


def tars(root: Path, *names: str) -> Path:
    for name in names:
        write_tar(root / name, [(f"{name}.mp4".replace(".tar", ""), b"video")])
    return root


def listing(root: Path | str, **args: Any) -> Manifest:
    return WebdatasetSource(**args).list_videos(location(root))


def facts(listing: Manifest) -> list[tuple[str, str | None]]:
    return [(video.name.rpartition("/")[2], video.label) for video in listing.videos]


@pytest.mark.parametrize(
    "names, expected",
    [
        (["00001.tar", "00000.tar"], [("00000.tar", None), ("00001.tar", None)]),
        (["train/a.tar", "val/a.tar"], [("train/a.tar", "train"), ("val/a.tar", "validation")]),
        (
            ["data/train-00000-of-00002.tar", "data/test.tar"],
            [("data/test.tar", "test"), ("data/train-00000-of-00002.tar", "train")],
        ),
        (["trains/1.tar"], [("trains/1.tar", None)]),
    ],
)
def test_folder_and_file_names_give_splits(
    tmp_path: Path, names: list[str], expected: list[tuple[str, str | None]]
):
    tars(tmp_path, *names)
    write_text(tmp_path / "00000.parquet", "")
    write_text(tmp_path / ".cache" / "x.tar", "")
    assert found(tmp_path) == expected
    assert found(tmp_path, by_split=False) == [(name, None) for name, _ in expected]


def test_patterns_and_single_tars(tmp_path: Path):
    tars(tmp_path, *(f"train-{number:03}.tar" for number in range(8, 12)))
    assert found(tmp_path / "train-009.tar") == [("train-009.tar", "train")]
    assert found(tmp_path / "train-{009..011}.tar") == [
        (f"train-{n}.tar", "train") for n in ("009", "010", "011")
    ]
    assert found(tmp_path / "{train,val}-00{8,9}.tar") == [
        (f"{split}-00{number}.tar", {"val": "validation"}.get(split, split))
        for split in ("train", "val")
        for number in (8, 9)
    ]
    assert found(tmp_path / "train-01*.tar") == [("train-010.tar", "train"), ("train-011.tar", "train")]


def test_a_pattern_of_folders_gives_splits(tmp_path: Path):
    tars(tmp_path, "train/x-0.tar", "train/x-1.tar", "val/x-0.tar")
    expected = [("train/x-0.tar", "train"), ("val/x-0.tar", "validation")]
    assert found(tmp_path / "{train,val}" / "x-0.tar") == expected
    assert found(tmp_path / "{train,val}" / "*-0.tar") == expected


def test_a_pattern_for_a_billion_shards_is_an_error_at_once():
    with pytest.raises(
        ValueError, match=r"\{0..999999999\}.tar: expected at most 1000000 shards, got 1000000000"
    ):
        found("s3://bucket/{0..999999999}.tar")
    with pytest.raises(ValueError, match=r"expected at most 1000000 shards, got 100000000"):
        found("s3://bucket/{0..9999}/{0..9999}.tar")
    with pytest.raises(ValueError, match=r"'pipe:cat x.tar' cannot be used"):
        found("pipe:cat x.tar")


def test_a_folder_without_plain_tars_is_an_error(tmp_path: Path):
    with pytest.raises(DataError, match=r"expected \*.tar, train/\*.tar, or a pattern .*, got no tar"):
        found(tmp_path)
    write_text(tmp_path / "a.tar.gz", "")
    with pytest.raises(DataError, match=r"a.tar.gz: expected plain tars, .*; fix: unpack it"):
        found(tmp_path)
    (tmp_path / "a.tar.gz").unlink()
    tars(tmp_path, "train.tar", "more.tar")
    with pytest.raises(
        DataError,
        match=r"expected a split in each name or in none, got train.tar and more.tar; .*by_split=false",
    ):
        found(tmp_path)
    with pytest.raises(DataError, match=r"lost.tar: expected a readable tar, got an error .No such file"):
        open_shard(location(tmp_path / "lost.tar"))


@pytest.mark.slow
def test_shards_in_a_bucket_and_behind_a_web_server(bucket: str, tmp_path: Path):
    tars(tmp_path, "train/a 0.tar", "train/a 1.tar", "val/b.tar")
    for name in ("train/a 0.tar", "train/a 1.tar", "val/b.tar"):
        location(f"{bucket}/set/{name}").upload(tmp_path / name)
    expected = [("train/a 0.tar", "train"), ("train/a 1.tar", "train"), ("val/b.tar", "validation")]
    assert found(f"{bucket}/set") == expected
    assert found(f"{bucket}/set/train/a {{0..1}}.tar") == [("a 0.tar", None), ("a 1.tar", None)]
    here, there = listing(tmp_path), listing(f"{bucket}/set")
    assert [video.name for video in there.videos] == [video.name for video in here.videos]
    for video in there.videos:
        assert video.place.read(*video.member or (0, 0)) == b"video"
    with faulty_server(tmp_path) as server:
        server.at_random(0.3, seed=1, faults=("reset", 503, "cut"))
        [video] = listing(f"{server.url}/val/b.tar").videos
        assert (video.url, video.member) == (f"{server.url}/val/b.tar", (512, 5))


def test_a_missing_remote_tar_is_an_error(bucket: str):
    with pytest.raises(DataError, match=r"cannot .* s3://bucket-.*/lost-0.tar: there is no such file"):
        listing(f"{bucket}/lost-{{0..1}}.tar")


def described(**fields: Any) -> bytes:
    return json.dumps(fields).encode()


LABELLED = [
    ("a.mp4", b"video"),
    ("a.cls", b"7\n"),
    ("a.txt", b"a man runs"),
    ("a.json", described(label="run", meta={"who": "p1", "age": 3}, score=1)),
    ("b.mp4", b"other"),
    ("b.cls", b"2"),
    ("b.txt", b"a dog"),
    ("b.json", described(label="walk", meta={"who": 4}, score=0.5)),
]


@pytest.mark.parametrize(
    "rule, labels",
    [
        ("auto", ["7", "2"]),
        ("cls", ["7", "2"]),
        ("txt", ["a man runs", "a dog"]),
        ("json.label", ["run", "walk"]),
        ("json.meta.who", ["p1", "4"]),
        ("none", [None, None]),
    ],
)
def test_the_label_rule_selects_the_field(tmp_path: Path, rule: str, labels: list[str | None]):
    write_tar(tmp_path / "x.tar", LABELLED)
    assert [label for _, label in facts(listing(tmp_path, label=rule))] == labels


def test_groups_and_columns_come_from_the_json(tmp_path: Path):
    write_tar(tmp_path / "x.tar", LABELLED)
    videos = listing(tmp_path, group="meta.who", columns=["score", "meta.age"]).videos
    assert [video.group for video in videos] == ["p1", "4"]
    assert [video.extra for video in videos] == [{"score": 1.0, "meta.age": 3}, {"score": 0.5}]


def test_without_cls_the_label_is_that_of_the_json(tmp_path: Path):
    write_tar(tmp_path / "1" / "x.tar", [pair for pair in LABELLED if not pair[0].endswith("cls")])
    write_tar(tmp_path / "2" / "x.tar", [("a.mp4", b""), ("a.json", described(label=None))])
    assert facts(listing(tmp_path / "1")) == [("a.mp4", "run"), ("b.mp4", "walk")]
    assert facts(listing(tmp_path / "2")) == [("a.mp4", None)]


def test_the_layout_of_video2dataset(tmp_path: Path):
    for shard in range(2):
        key = f"{shard:05}0000"
        members = [
            (f"{key}.mp4", b"video"),
            (f"{key}.txt", b"a caption"),
            (f"{key}.json", described(url=key)),
        ]
        failed = [(f"{shard:05}0001.json", described(error_message="404"))]
        write_tar(tmp_path / f"{shard:05}.tar", [*members, *failed])
        write_text(tmp_path / f"{shard:05}.parquet", "")
        write_text(tmp_path / f"{shard:05}_stats.json", "{}")
    found = listing(tmp_path, columns=["url"])
    assert facts(found) == [("000000000.mp4", None), ("000010000.mp4", None)]
    assert [video.extra for video in found.videos] == [{"url": "000000000"}, {"url": "000010000"}]
    assert found.ignored == 2


def test_unlabelled_shards_lose_their_labels(tmp_path: Path):
    write_tar(tmp_path / "train" / "x.tar", [("a.mp4", b""), ("a.cls", b"1")])
    write_tar(tmp_path / "unlabelled" / "x.tar", [("b.mp4", b""), ("b.cls", b"1")])
    assert facts(listing(tmp_path)) == [("a.mp4", "1"), ("b.mp4", None)]


def test_a_test_split_may_lack_labels(tmp_path: Path):
    write_tar(tmp_path / "train.tar", [("a.mp4", b""), ("a.json", described(label="x"))])
    write_tar(tmp_path / "test.tar", [("b.mp4", b""), ("b.json", described(label=None))])
    assert facts(listing(tmp_path, label="json.label")) == [("b.mp4", None), ("a.mp4", "x")]


@pytest.mark.parametrize(
    "members, args, message",
    [
        ([("b.mp4", b"")], {}, r"x.tar, b: expected a label from label=cls, .* got None; the sample has mp4"),
        (
            [("b.mp4", b""), ("b.cls", b" \n")],
            {},
            r"x.tar, b: expected a label from label=cls, text or a whole number, got ''",
        ),
        (
            [("b.mp4", b""), ("b.cls", b"x")],
            {"num_classes": 2},
            r"x.tar, b: expected a label that is a whole number",
        ),
        (
            [("b.mp4", b""), ("b.cls", b"2")],
            {"num_classes": 2},
            r"x.tar, b: expected a label from 0 to 1 \(source.args.num_classes=2\), got 2",
        ),
        (
            [("b.mp4", b"")],
            {"label": "json.x"},
            r"x.tar, a: expected a .json with label, group or columns, got none",
        ),
        (
            [("b.mp4", b""), ("b.cls", b"1"), ("b.json", b"[]")],
            {"group": "x"},
            r"x.tar, a: expected a .json with label",
        ),
    ],
)
def test_an_invalid_label_is_an_error_that_names_the_sample(
    tmp_path: Path, members: list[tuple[str, bytes]], args: dict[str, Any], message: str
):
    write_tar(tmp_path / "x.tar", [("a.mp4", b""), ("a.cls", b"1"), *members])
    with pytest.raises(DataError, match=message):
        listing(tmp_path, **args)


@pytest.mark.parametrize(
    "content, message",
    [
        (b"{", r"x.tar, a: expected JSON in its .json, got invalid text"),
        (b"[1]", r"x.tar, a: expected an object in its .json, got \[1\]"),
        (
            b'{"y": 1}',
            r"x.tar, a: expected a label from label=json.x, .* got None; the sample has mp4, json, json.y",
        ),
        (b'{"x": true}', r"label=json.x, text or a whole number, got True"),
        (b'{"x": 0.5}', r"label=json.x, text or a whole number, got 0.5"),
    ],
)
def test_an_invalid_json_is_an_error_that_names_the_sample(tmp_path: Path, content: bytes, message: str):
    write_tar(tmp_path / "x.tar", [("a.mp4", b""), ("a.json", content)])
    with pytest.raises(DataError, match=message):
        listing(tmp_path, label="json.x")


def test_a_label_after_samples_without_one_is_an_error(tmp_path: Path):
    write_tar(tmp_path / "x.tar", [("a.mp4", b""), ("b.mp4", b""), ("b.cls", b"1")])
    with pytest.raises(
        DataError,
        match=r"x.tar, b: expected no .cls, as in the first sample, got one; fix: set source.args",
    ):
        listing(tmp_path)
    assert facts(listing(tmp_path, label="none")) == [("a.mp4", None), ("b.mp4", None)]


def test_a_column_of_several_types_is_an_error_that_names_the_sample(tmp_path: Path):
    members = [("a.mp4", b""), ("a.json", described(x=1)), ("b.mp4", b""), ("b.json", described(x="y"))]
    write_tar(tmp_path / "x.tar", members)
    with pytest.raises(DataError, match=r"x.tar, b: expected one type in x, got 'y' after 1"):
        listing(tmp_path, columns=["x"])
