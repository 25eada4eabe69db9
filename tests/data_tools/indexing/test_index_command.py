"""`kinemae data index`: an index for any WebDataset, which training then reads in place."""

import hashlib
import io
import json
import os
import re
import tarfile
import textwrap
import zlib
from pathlib import Path

import pytest
import webdataset

from kinemae.data_tools.__main__ import PROGRAM
from kinemae.data_tools.command import run_program
from kinemae.data_tools.index import COLUMNS, NO_LABEL, ShardIndex, open_index
from kinemae.data_tools.storage.location import location
from kinemae.data_tools.stream.augment import AugmentConfig
from kinemae.data_tools.stream.decode import probe
from kinemae.data_tools.stream.frame_sampling import ClipConfig
from kinemae.data_tools.stream.training_clips import TrainingClips
from kinemae.data_tools.stream.video_reader import read_video
from tests.conftest import run_module
from tests.source_collections import write_clip, write_clips, write_tar, write_text


def index(*arguments: object, workers: int = 1) -> int:
    """Run the command with its arguments in the order of a command line."""
    return run_program(PROGRAM, ["index", *map(str, arguments), f"workers={workers}"])


def rejected(folder: Path) -> dict[str, str]:
    lines = (folder / "rejected.jsonl").read_text().splitlines()
    return {entry["path"]: entry["reason"] for entry in map(json.loads, lines)}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def written(error: pytest.CaptureFixture[str]) -> str:
    return error.readouterr().err.strip().splitlines()[-1]


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    folder = tmp_path_factory.mktemp("clips")
    return [write_clip(folder / f"{number}.mp4", number) for number in range(8)]


@pytest.fixture
def external(tmp_path: Path, clips: list[bytes]) -> Path:
    """Two training shards and one for validation, as on the Hugging Face hub; one video is damaged."""
    root = tmp_path / "external"
    described = [json.dumps({"score": number / 2, "who": f"p{number}"}).encode() for number in range(8)]
    samples = [
        [(f"k{number}.mp4", clip), (f"k{number}.cls", b"%d" % (10 - number)), (f"k{number}.json", about)]
        for number, (clip, about) in enumerate(zip(clips, described, strict=True))
    ]
    samples[1][0] = ("k1.mp4", clips[1][: len(clips[1]) // 2])
    write_tar(root / "data" / "train-0.tar", [*samples[0], *samples[1], *samples[2]])
    write_tar(root / "data" / "train-1.tar", [*samples[3], *samples[4], ("dir/k.v2.json", b"{}")])
    write_tar(root / "data" / "val-0.tar", [*samples[5], ("dir/k.v2.webm", clips[6]), ("dir/k.cls", b"8")])
    return root


def check_truth(data_set: ShardIndex) -> None:
    """Check that every row gives the position and metadata of its video."""
    for position in range(len(data_set)):
        sample = data_set.sample(position)
        video = read_video(data_set, sample)
        info = probe(video)
        assert {name: getattr(sample, name) for name in vars(info)} == vars(info)
        assert (sample.crc32, sample.length) == (zlib.crc32(video), len(video))
        assert sample.content == hashlib.sha256(video).hexdigest()[:32]


def test_each_split_becomes_a_data_set_with_the_same_classes(
    external: Path, clips: list[bytes], tmp_path: Path
):
    assert index(external, tmp_path / "out", "columns=[score]", "group=who", "label=cls") == 3
    write_tar(external / "data" / "train-1.tar", [("k3.mp4", clips[3]), ("k3.cls", b"7"), ("k3.json", b"{}")])
    write_tar(external / "data" / "val-0.tar", [("k5.mp4", clips[5]), ("k5.cls", b"10"), ("k5.json", b"{}")])
    assert index(external, tmp_path / "out", "columns=[score]", "group=who") == 0
    train, validation = (open_index(tmp_path / "out" / split) for split in ("train", "validation"))
    assert train.classes == validation.classes == ("7", "8", "10")
    assert train.column("key").tolist() == ["k0", "k2", "k3"]
    assert [train.classes[label] for label in train.column("label").tolist()] == ["10", "8", "7"]
    assert train.extra == ("score",)
    assert train.column("score").tolist()[:2] == [0.0, 1.0]
    assert train.column("group").tolist() == ["p0", "p2", ""]
    assert list(rejected(tmp_path / "out" / "train")) == ["k1.mp4"]
    assert [(shard.samples, Path(shard.name).is_absolute()) for shard in train.shards] == [
        (2, True),
        (1, True),
    ]
    for entry in train.shards:
        content = Path(entry.name).read_bytes()
        assert (entry.bytes, entry.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    check_truth(train)
    check_truth(validation)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"train", "validation"}


def test_a_sample_without_video_is_rejected_by_name(external: Path):
    assert index(external, "label=none") == 0
    assert rejected(external / "train") == {
        "k1.mp4": "FFmpeg cannot read it: Invalid data found when processing input",
        "dir/k": "no member of the sample is a video",
    }
    assert rejected(external / "validation") == {}
    assert open_index(external / "validation").column("key").tolist() == ["k5", "dir/k"]


def test_an_indexed_data_set_is_read_in_place_and_can_be_moved_with_its_shards(
    external: Path, tmp_path: Path, clips: list[bytes]
):
    assert index(external, "label=none") == 0
    external.rename(tmp_path / "moved")
    data_set = open_index(tmp_path / "moved" / "train")
    assert [shard.name for shard in data_set.shards] == ["../data/train-0.tar", "../data/train-1.tar"]
    check_truth(data_set)
    reader = TrainingClips(
        data_set, clip=ClipConfig(frames=2, stride=1, size=16), augment=AugmentConfig(), seed=0
    )
    batch = reader.batch(range(len(data_set)))
    assert sorted(batch.keys) == ["k0", "k2", "k3", "k4"]
    assert batch.skipped == ()


def test_the_keys_are_those_of_webdataset(external: Path):
    assert index(external, "label=none") == 0
    tars = [str(external / "data" / f"train-{number}.tar") for number in (0, 1)]
    videos = {
        sample["__key__"]: sample["mp4"]
        for sample in webdataset.WebDataset(tars, shardshuffle=False)
        if "mp4" in sample and sample["__key__"] != "k1"
    }
    data_set = open_index(external / "train")
    samples = [data_set.sample(position) for position in range(len(data_set))]
    assert {sample.key: read_video(data_set, sample) for sample in samples} == videos


@pytest.mark.slow
def test_the_number_of_processes_changes_nothing(external: Path, tmp_path: Path):
    assert index(external, tmp_path / "one", "label=none") == 0
    assert index(external, tmp_path / "five", "label=none", workers=5) == 0
    assert contents(tmp_path / "one") == contents(tmp_path / "five")


def test_shards_without_splits_are_one_data_set(tmp_path: Path, clips: list[bytes]):
    write_tar(tmp_path / "00000.tar", [("a.mp4", clips[0]), ("a.txt", b"a man runs")])
    assert index(tmp_path) == 0
    data_set = open_index(tmp_path)
    assert data_set.shards[0].name == "00000.tar"
    assert data_set.column("label").tolist() == [NO_LABEL]
    assert index(tmp_path, "label=txt") == 0  # an index of `index` may be overwritten
    assert open_index(tmp_path).classes == ("a man runs",)


def test_probe_header_takes_the_number_of_frames_from_the_container(tmp_path: Path, clips: list[bytes]):
    """Only a full decode finds undecodable frames."""
    begin, end = clips[0].find(b"mdat") + 4, clips[0].find(b"moov") - 4
    assert begin < end, "the description of the file is expected at its end"
    last = end - (end - begin) // 8
    damaged = clips[0][:last] + bytes(end - last) + clips[0][end:]
    write_tar(tmp_path / "x.tar", [("a.mp4", clips[0]), ("b.mp4", damaged)])
    assert index(tmp_path, tmp_path / "full") == 0
    assert index(tmp_path, tmp_path / "header", "probe=header") == 0
    assert open_index(tmp_path / "header").column("frames").tolist() == [3, 3]
    assert list(rejected(tmp_path / "full")) == ["b.mp4"]


def test_a_dry_run_counts_and_writes_nothing(
    tmp_path: Path, clips: list[bytes], capsys: pytest.CaptureFixture[str]
):
    write_tar(tmp_path / "x.tar", [("a.mp4", clips[0]), ("a.cls", b"5"), ("b.json", b"{}")])
    assert index(tmp_path, "--dry-run", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report == {"shards": 1, "videos": 1, "without_video": 1, "classes": ["5"]}
    assert [path.name for path in tmp_path.iterdir()] == ["x.tar"]


def test_json_reports_what_was_written(
    tmp_path: Path, clips: list[bytes], capsys: pytest.CaptureFixture[str]
):
    write_tar(tmp_path / "x.tar", [("a.mp4", clips[0]), ("a.cls", b"5"), ("b.mp4", b"-"), ("b.cls", b"6")])
    assert index(tmp_path, "--json", "num_classes=7") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["splits"] == {"all": {"samples": 1, "shards": 1, "rejected": 1}}
    assert report["classes"] == [str(number) for number in range(7)]


def test_classes_of_another_data_set_are_reused(
    tmp_path: Path, clips: list[bytes], capsys: pytest.CaptureFixture[str]
):
    for split, label in (("a", b"run"), ("b", b"walk"), ("c", b"fly")):
        write_tar(tmp_path / split / "x.tar", [(f"{split}.mp4", clips[0]), (f"{split}.cls", label)])
    write_text(tmp_path / "list.txt", "walk\nrun\n")
    assert index(tmp_path / "a", f"classes={tmp_path / 'list.txt'}") == 0
    assert index(tmp_path / "b", f"classes={tmp_path / 'a'}") == 0
    first, second = open_index(tmp_path / "a"), open_index(tmp_path / "b")
    assert first.classes == second.classes == ("walk", "run")
    assert first.column("label").tolist() + second.column("label").tolist() == [1, 0]
    assert index(tmp_path / "c", f"classes={tmp_path / 'a'}") == 3
    assert "x.tar, c: expected one of the 2 classes of classes=" in written(capsys)


def test_a_column_has_one_type_in_all_splits(
    tmp_path: Path, clips: list[bytes], capsys: pytest.CaptureFixture[str]
):
    for split, about in (("train", {"x": 1, "y": "a"}), ("val", {"x": 0.5})):
        described = json.dumps(about).encode()
        write_tar(tmp_path / f"{split}.tar", [(f"{split}.mp4", clips[0]), (f"{split}.json", described)])
    assert index(tmp_path, "columns=[x,y]") == 0
    train, validation = (open_index(tmp_path / split) for split in ("train", "validation"))
    assert train.column("x").dtype == validation.column("x").dtype == float
    assert (train.extra, validation.extra) == (("x", "y"), ("x",))
    write_tar(tmp_path / "val.tar", [("v.mp4", clips[0]), ("v.json", b'{"x": "b"}')])
    assert index(tmp_path, "columns=[x,y]") == 3
    assert "val.tar, v: expected one type in x, got 'b' after 1" in written(capsys)


def damage(path: Path, offset: int, size: int | None = None) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content[:size])


@pytest.mark.parametrize("workers", [1, 2])
def test_a_damaged_or_truncated_tar_is_an_error_that_names_it(
    tmp_path: Path, clips: list[bytes], workers: int, capsys: pytest.CaptureFixture[str]
):
    tar = write_tar(tmp_path / "x.tar", [("a.mp4", clips[0]), ("b.mp4", clips[1])])
    with tarfile.open(tar) as opened:
        second = opened.getmember("b.mp4").offset
    content = tar.read_bytes()
    tar.write_bytes(content[:second])
    assert index(tmp_path, workers=workers) == 3
    assert "x.tar: expected a complete tar, got one that is cut short after a.mp4" in written(capsys)
    tar.write_bytes(content)
    damage(tar, second + 3)
    assert index(tmp_path, workers=workers) == 3
    assert f"x.tar: expected a header, got damaged bytes after a.mp4, at byte {second}" in written(capsys)
    assert not (tmp_path / "dataset.json").exists()


def test_a_changed_video_is_skipped_by_the_reader(tmp_path: Path, clips: list[bytes]):
    tar = write_tar(tmp_path / "x.tar", [("a.mp4", clips[0]), ("b.mp4", clips[1])])
    assert index(tmp_path) == 0
    damage(tar, open_index(tmp_path).sample(0).offset + 100)
    reader = TrainingClips(
        open_index(tmp_path), clip=ClipConfig(frames=2, stride=1, size=16), augment=AugmentConfig(), seed=0
    )
    batch = reader.batch(range(2))
    assert [(clip.key, "its checksum differs" in clip.reason) for clip in batch.skipped] == [("a", True)]


def test_a_key_of_several_shards_gets_the_name_of_its_shard_as_prefix(
    tmp_path: Path, clips: list[bytes], capsys: pytest.CaptureFixture[str]
):
    for number in range(3):
        members = [("a.mp4", clips[number]), (f"b{number // 2}.mp4", clips[3 + number])]
        write_tar(tmp_path / "d" / f"{number}.tar", members)
    assert index(tmp_path) == 0
    assert "2 keys are in several shards, first a: they get the name of the shard as a prefix" in str(
        capsys.readouterr().err
    )
    data_set = open_index(tmp_path)
    assert data_set.column("key").tolist() == [
        *("d/0.tar/a", "d/0.tar/b0", "d/1.tar/a", "d/1.tar/b0", "d/2.tar/a", "b1"),
    ]
    check_truth(data_set)
    assert run_program(PROGRAM, ["verify", str(tmp_path), "workers=1"]) == 0
    write_tar(tmp_path / "d" / "2.tar", [("d/0.tar/a.mp4", clips[0])])
    assert index(tmp_path) == 3
    assert "key d/0.tar/a: expected unique keys, got it twice; fix: rename one of" in written(capsys)


@pytest.mark.parametrize(
    "members, options, code, message",
    [
        ([("a.txt", b"")], [], 3, "expected readable videos, got none of 1, first a"),
        ([], [], 3, "x.tar: expected members such as KEY.mp4, got no sample"),
        (
            [("a.mp4", b"text")],
            [],
            3,
            "expected readable videos, got none of 1, first a.mp4 in x.tar: FFmpeg cannot read",
        ),
        (
            [("a.mp4", b""), ("a.cls", b"x")],
            ["num_classes=2"],
            3,
            "x.tar, a: expected a label that is a whole number",
        ),
        (
            [("a.mp4", b""), ("a.cls", b"2")],
            ["num_classes=2"],
            3,
            "x.tar, a: expected a label from 0 to 1 .num_classes=2., got 2",
        ),
        ([("a.mp4", b"")], ["label=cls"], 3, "x.tar, a: expected a label from label=cls"),
        (
            [("a.mp4", b"")],
            ["label=class"],
            2,
            "label must be auto, cls, txt, none or json.FIELD, or NAME.cls or NAME.txt, got 'class'",
        ),
        ([("a.mp4", b"")], ["probe=quick"], 2, "probe"),
        ([("a.mp4", b"")], ["max_bad_fraction=2"], 2, r"max_bad_fraction must lie in \[0, 1\], got 2"),
        ([("a.mp4", b"")], ["columns=[crc32]"], 2, "columns must not hold names of the index's own columns"),
    ],
)
def test_an_invalid_shard_or_option_is_an_error_that_names_it(
    tmp_path: Path,
    members: list[tuple[str, bytes]],
    options: list[str],
    code: int,
    message: str,
    capsys: pytest.CaptureFixture[str],
):
    write_tar(tmp_path / "x.tar", members)
    assert index(tmp_path, *options) == code
    error = written(capsys)
    assert re.search(f"ERROR .*({message})", error), error
    assert not (tmp_path / "dataset.json").exists()


def test_a_negative_number_of_workers_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write_tar(tmp_path / "x.tar", [])
    assert index(tmp_path, workers=-1) == 2
    assert "workers must be 0 or more, got -1" in written(capsys)


def test_too_many_bad_videos_stop_the_command_and_results_are_kept(
    tmp_path: Path, clips: list[bytes], capsys: pytest.CaptureFixture[str]
):
    write_tar(tmp_path / "x.tar", [("a.mp4", clips[0]), ("b.mp4", b"text")])
    assert index(tmp_path, "max_bad_fraction=0.4") == 3
    assert (
        "max_bad_fraction=0.4: expected at most this fraction of unreadable videos, got 1 of 2, first b"
        in written(capsys)
    )
    journal = (tmp_path / "indexed.jsonl").read_text()
    remembered = journal.replace('"frames": 3', '"frames": 30')
    assert remembered != journal
    (tmp_path / "indexed.jsonl").write_text(remembered + remembered[:-20])  # an incomplete last line
    assert index(tmp_path, "max_bad_fraction=0.5") == 0
    assert open_index(tmp_path).column("frames").tolist() == [30]
    assert not (tmp_path / "indexed.jsonl").exists()


def pretended(folder: Path) -> None:
    """Stop a run and change the results in its log."""
    assert index(folder, "max_bad_fraction=0") == 3
    journal = (folder / "indexed.jsonl").read_text()
    (folder / "indexed.jsonl").write_text(journal.replace('"frames": 3', '"frames": 30'))


def test_logged_results_of_another_shard_or_other_rules_are_not_reused(tmp_path: Path, clips: list[bytes]):
    write_tar(tmp_path / "x.tar", [("a.mp4", clips[0]), ("b.mp4", b"text")])
    pretended(tmp_path)
    os.utime(tmp_path / "x.tar", (1, 1))
    assert index(tmp_path) == 0
    assert open_index(tmp_path).column("frames").tolist() == [3]
    pretended(tmp_path)
    assert index(tmp_path, "label=none") == 0
    assert open_index(tmp_path).column("frames").tolist() == [3]


@pytest.mark.slow
def test_only_the_video_that_crashes_the_decoder_is_rejected(tmp_path: Path, clips: list[bytes]):
    """The process dies on one video; the other videos of the shard are indexed."""
    members = [("a.mp4", clips[0]), ("b.mp4", b"DEADLY"), ("d.txt", b"")]
    write_tar(tmp_path / "shards" / "x.tar", members)
    killer = """
        import os, zlib
        crc32 = zlib.crc32
        def deadly(data, *rest):
            if bytes(data[:6]) == b"DEADLY":
                os.kill(os.getpid(), 9)
            return crc32(data, *rest)
        zlib.crc32 = deadly
    """
    write_text(tmp_path / "site" / "sitecustomize.py", textwrap.dedent(killer))
    run_module(
        "data_tools", "index", str(tmp_path / "shards"), "workers=2", PYTHONPATH=str(tmp_path / "site")
    )
    data_set = open_index(tmp_path / "shards")
    assert data_set.column("key").tolist() == ["a"]
    assert rejected(tmp_path / "shards") == {
        "b.mp4": "the decoder crashed on it",
        "d": "no member of the sample is a video",
    }
    check_truth(data_set)


def test_index_warns_about_pickles_and_never_reads_them(
    tmp_path: Path, clips: list[bytes], capsys: pytest.CaptureFixture[str]
):
    write_tar(tmp_path / "x.tar", [("a.mp4", clips[0]), ("a.pyd", b"cos\nsystem\n(S'touch owned'\ntR.")])
    assert index(tmp_path) == 0
    assert "x.tar holds 1 pickled members, first a.pyd: they can run code" in capsys.readouterr().err
    assert not Path("owned").exists()


def test_an_index_of_shard_is_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write_clips(tmp_path / "videos", "train/b/1.mp4", "train/a/2.mp4", "val/a/3.mp4", "unlabelled/4.mp4")
    ours = tmp_path / "ours"
    sharding = ["shard", str(tmp_path / "videos"), str(ours), "layout.name=copy", "workers=1"]
    assert run_program(PROGRAM, sharding) == 0
    assert index(ours) == 2
    assert "expected a new folder, got a data set made by data_tools shard, whose" in written(capsys)
    assert index(ours, tmp_path / "again") == 0
    for split in ("train", "validation", "unlabelled"):
        first, second = (open_index(folder / split) for folder in (ours, tmp_path / "again"))
        assert first.classes == second.classes == ("a", "b")
        assert first.fingerprint == second.fingerprint
        for name in COLUMNS.names:
            assert first.column(name).tolist() == second.column(name).tolist()


def test_a_remote_data_set_is_indexed_locally_and_read_remotely(
    bucket: str, external: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    for name in ("train-0.tar", "train-1.tar", "val-0.tar"):
        location(f"{bucket}/set/data/{name}").upload(external / "data" / name)
    assert index(f"{bucket}/set", "label=none") == 2
    assert f"SHARDS {bucket}/set: expected a local folder, or OUT for the index" in written(capsys)
    assert index(f"{bucket}/set", tmp_path / "there", "label=none") == 0
    assert index(external, tmp_path / "here", "label=none") == 0
    for split in ("train", "validation"):
        here, there = (open_index(tmp_path / place / split) for place in ("here", "there"))
        assert here.fingerprint == there.fingerprint
        assert there.shards[0].name.startswith(f"{bucket}/set/data/")
        for column in ("key", "offset", "length", "crc32", "content", "frames"):
            assert here.column(column).tolist() == there.column(column).tolist()
        check_truth(there)


def test_an_index_contains_no_secrets_and_is_local(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert index("https://host/x.tar?signature=secret", tmp_path) == 2
    error = written(capsys)
    assert "got a password or a signature, which the index would publish" in error
    assert "=secret" not in error
    write_tar(tmp_path / "x.tar", [])
    assert index(tmp_path, "s3://bucket/out") == 2
    assert "OUT s3://bucket/out: expected a local folder, got a URL" in written(capsys)


def test_a_tar_made_by_webdataset_itself_is_indexed(tmp_path: Path, clips: list[bytes]):
    content = io.BytesIO()
    with webdataset.TarWriter(content) as writer:
        for number in range(3):
            writer.write(
                {"__key__": f"s{number}", "mp4": clips[number], "cls": number, "json": {"n": number}}
            )
    (tmp_path / "w.tar").write_bytes(content.getvalue())
    assert index(tmp_path) == 0
    data_set = open_index(tmp_path)
    assert (data_set.classes, data_set.column("label").tolist()) == (("0", "1", "2"), [0, 1, 2])
    check_truth(data_set)
