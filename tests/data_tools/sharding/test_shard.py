"""`kinemae data shard`: shards readable by webdataset, with the same bytes for any way of running."""

import hashlib
import json
import re
import shutil
import zlib
from collections import Counter
from pathlib import Path

import pytest
import webdataset

from kinemae.data_tools.config import load_config
from kinemae.data_tools.index import NO_LABEL, ShardIndex, open_index
from kinemae.data_tools.sharding.plan import ShardConfig
from kinemae.data_tools.stream.decode import probe
from tests import sharding
from tests.filming import FORMATS, SHIPPED, VIDEO_ENDINGS
from tests.sharding import contents, stopped_before_shards, video_bytes, write_clip


def shard(source: Path, out: Path, *overrides: str, workers: int = 1) -> int:
    """Shard with the layout copy, so that bytes can be compared; `layouts/` tests the other layouts."""
    return sharding.shard(source, out, "layout.name=copy", *overrides, workers=workers)


def names_and_bytes(index: ShardIndex) -> dict[str, bytes]:
    found = video_bytes(index)
    return {index.sample(n).name: found[index.sample(n).key] for n in range(len(index))}


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of ten clips, three unreadable videos, and one file of another kind."""
    root = tmp_path_factory.mktemp("collection") / "videos"
    for number in range(20):
        write_clip(root / ("Run" if number % 2 else "walk slowly") / f"Clip.{number}.mp4", number)
    whole = (root / "Run" / "Clip.1.mp4").read_bytes()
    (root / "Run" / "empty.mp4").touch()
    (root / "Run" / "text.mp4").write_text("no video at all")
    (root / "walk slowly" / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    (root / "notes.txt").touch()
    return root


@pytest.fixture(scope="module")
def sharded(collection: Path) -> Path:
    out = collection.parent / "shards"
    assert shard(collection, out, "samples_per_shard=6") == 0
    return out


def test_webdataset_alone_reads_the_same_samples_and_bytes(sharded: Path, collection: Path):
    for split, count in (("train", 16), ("validation", 4)):
        urls = [str(path) for path in sorted((sharded / split).glob("*.tar"))]
        samples = list(webdataset.WebDataset(urls, shardshuffle=False))
        index = open_index(sharded / split)
        assert [sample["__key__"] for sample in samples] == index.column("key").tolist()
        assert len(samples) == count
        for sample in samples:
            about = json.loads(sample["json"])
            assert sample["mp4"] == (collection / about["name"]).read_bytes()
            assert about["label"] == Path(about["name"]).parts[0] == index.classes[about["label_index"]]


def test_the_index_gives_the_position_and_metadata_of_each_video(sharded: Path, collection: Path):
    index = open_index(sharded / "train")
    found = names_and_bytes(index)
    for position in range(len(index)):
        sample = index.sample(position)
        assert found[sample.name] == (collection / sample.name).read_bytes()
        assert sample.crc32 == zlib.crc32(found[sample.name])
        info = probe(collection / sample.name)
        assert {name: getattr(sample, name) for name in vars(info)} == vars(info)
        assert index.classes[sample.label] == Path(sample.name).parts[0]
    for entry in index.shards:
        data = (index.folder / entry.name).read()
        assert (entry.bytes, entry.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert [entry.samples for entry in index.shards] == [6, 6, 4]


def test_the_split_is_balanced_complete_and_with_the_same_classes(sharded: Path):
    train, validation = (open_index(sharded / split) for split in ("train", "validation"))
    assert train.classes == validation.classes == ("Run", "walk slowly")
    assert Counter(train.column("label").tolist()) == {0: 8, 1: 8}
    assert Counter(validation.column("label").tolist()) == {0: 2, 1: 2}
    names = train.column("name").tolist() + validation.column("name").tolist()
    assert len(set(names)) == 20


def test_the_order_in_the_shards_is_shuffled(sharded: Path):
    labels = open_index(sharded / "train").column("label").tolist()
    assert labels not in (sorted(labels), sorted(labels, reverse=True))


def test_unreadable_videos_are_listed_and_not_fatal(sharded: Path):
    for path in (sharded / "rejected.jsonl", sharded / "train" / "rejected.jsonl"):
        rejected = [json.loads(line) for line in path.read_text().splitlines()]
        assert [entry["path"] for entry in rejected] == [
            "Run/empty.mp4",
            "Run/text.mp4",
            "walk slowly/cut.mp4",
        ]
        assert all(entry["reason"] for entry in rejected)
    assert (sharded / "validation" / "rejected.jsonl").read_text() == ""


def test_the_number_of_processes_does_not_change_a_byte(sharded: Path, collection: Path, tmp_path: Path):
    assert shard(collection, tmp_path / "two", "samples_per_shard=6", workers=2) == 0
    assert contents(tmp_path / "two") == contents(sharded)


def test_the_location_of_the_source_does_not_change_a_byte(sharded: Path, collection: Path, tmp_path: Path):
    shutil.copytree(collection, tmp_path / "videos")
    assert shard(tmp_path / "videos", tmp_path / "out", "samples_per_shard=6") == 0
    assert contents(tmp_path / "out") == contents(sharded)


def test_a_stopped_run_keeps_its_results_for_the_next(collection: Path, tmp_path: Path):
    out = tmp_path / "out"
    with stopped_before_shards():
        assert shard(collection, out) == 3
    log = out / "work" / "transcoded.jsonl"
    lines = log.read_text().splitlines()
    assert len(lines) == 19  # train
    remembered = [line.replace('"frames": 3', '"frames": 30') for line in lines]
    log.write_text("\n".join(remembered)[:-20])  # an incomplete last line
    with stopped_before_shards():
        assert shard(collection, out) == 3
    again = log.read_text().splitlines()
    assert again[:-1] == remembered[:-1]
    assert again[-1] == lines[-1]
    assert shard(collection, out) == 0
    frames = open_index(out / "train").column("frames").tolist()
    assert len(frames) == 16 and frames.count(30) >= 15


def test_rejected_videos_stop_the_command_and_a_higher_limit_continues(
    collection: Path, sharded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    arguments = (collection, tmp_path / "out", "samples_per_shard=6")
    assert shard(*arguments, "max_bad_fraction=0.1") == 3
    message = "max_bad_fraction=0.1: expected at most this fraction of unreadable videos, got 3 of 23"
    assert message in capsys.readouterr().err
    assert shard(*arguments, "max_bad_fraction=0.2") == 0
    assert contents(tmp_path / "out") == contents(sharded)


def test_a_complete_data_set_is_left_alone(
    sharded: Path, collection: Path, capsys: pytest.CaptureFixture[str]
):
    before = {path: path.stat().st_mtime_ns for path in sharded.rglob("*")}
    assert shard(collection, sharded, "samples_per_shard=6") == 0
    assert "is complete already" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in sharded.rglob("*")} == before


def test_an_output_of_another_config_is_an_error(
    sharded: Path, collection: Path, capsys: pytest.CaptureFixture[str]
):
    assert shard(collection, sharded, "seed=5") == 2
    assert "expected the same data set, got one made of videos with another config" in capsys.readouterr().err


def test_an_output_folder_with_other_files_is_an_error(collection: Path, capsys: pytest.CaptureFixture[str]):
    assert shard(collection, collection) == 2
    assert (
        "expected an empty folder or an earlier output, got files but no shard.json"
        in capsys.readouterr().err
    )


def test_a_dry_run_counts_and_writes_nothing(
    collection: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert shard(collection, tmp_path / "out", "--dry-run", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report == {"videos": 23, "ignored": 1, "classes": ["Run", "walk slowly"], "given_splits": []}
    assert not (tmp_path / "out").exists()


def test_json_reports_what_was_written(sharded: Path, collection: Path, capsys: pytest.CaptureFixture[str]):
    assert shard(collection, sharded, "samples_per_shard=6", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["rejected"] == 3
    assert {split: about["samples"] for split, about in report["splits"].items()} == {
        "train": 16,
        "validation": 4,
    }
    assert report["splits"]["train"]["fingerprint"] == open_index(sharded / "train").fingerprint


def test_given_splits_stay_and_share_the_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    names = ["train/a/1.mp4", "train/b/2.mp4", "val/b/3.mp4", "unlabelled/4.mp4"]
    for number, name in enumerate(names):
        write_clip(tmp_path / "videos" / name, number)
    assert shard(tmp_path / "videos", tmp_path / "out") == 0
    indices = {split: open_index(tmp_path / "out" / split) for split in ("train", "validation", "unlabelled")}
    assert {index.classes for index in indices.values()} == {("a", "b")}
    assert sorted(indices["train"].column("label").tolist()) == [0, 1]
    assert indices["validation"].column("label").tolist() == [1]
    assert indices["unlabelled"].column("label").tolist() == [NO_LABEL]
    assert "validation has no video of 1 classes, first a" in capsys.readouterr().err


def test_a_csv_with_integer_labels_and_a_missing_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for number in range(2):
        write_clip(tmp_path / f"{number}.mp4", number)
    (tmp_path / "list.csv").write_text("path,label\n0.mp4,10\n1.mp4,9\nlost.mp4,9\n")
    assert shard(tmp_path / "list.csv", tmp_path / "out") == 0
    assert open_index(tmp_path / "out" / "train").classes == ("9", "10")
    assert "1 of 3 videos are rejected, first lost.mp4: " in capsys.readouterr().err


def test_keys_that_collide_keep_both_videos(tmp_path: Path):
    names = ["a/Clip.mp4", "a/clip.mp4", "a/CLIP (1).mp4"]
    for number, name in enumerate(names):
        write_clip(tmp_path / "videos" / name, number)
    assert shard(tmp_path / "videos", tmp_path / "out", "validation_fraction=0") == 0
    found = names_and_bytes(open_index(tmp_path / "out" / "train"))
    assert found == {name: (tmp_path / "videos" / name).read_bytes() for name in names}


@pytest.mark.parametrize("folder", [SHIPPED, FORMATS], ids=["shipped", "more"])
def test_real_clips_of_every_format_are_sharded_as_they_are(folder: Path, tmp_path: Path):
    if not folder.is_dir():
        pytest.skip(f"no more videos at {folder}: the shipped ones are sharded")
    assert shard(folder, tmp_path / "out", workers=0) == 0
    found = names_and_bytes(open_index(tmp_path / "out" / "train"))
    assert found.keys() == {path.name for path in folder.iterdir() if path.suffix in VIDEO_ENDINGS}
    assert all(data == (folder / name).read_bytes() for name, data in found.items())


@pytest.mark.parametrize(
    "make, code, message",
    [
        (None, 3, "SOURCE .*source: expected a folder of videos, or a csv"),
        ("folder", 3, "SOURCE .*source: expected CLASS/.*, got no video and 1 other files"),
        ("file", 2, "SOURCE .*source: expected a folder or a file with the extension .csv, .jsonl, .tar"),
        ("broken", 3, ".*rejected.jsonl: expected readable videos, got none of 1, first a/b.mp4: "),
    ],
)
def test_a_source_without_videos_is_an_error(
    tmp_path: Path, make: str | None, code: int, message: str, capsys: pytest.CaptureFixture[str]
):
    source = tmp_path / "source"
    if make == "file":
        source.touch()
    elif make:
        (source / "a").mkdir(parents=True)
        (source / "a" / ("b.mp4" if make == "broken" else "notes.txt")).touch()
    assert shard(source, tmp_path / "out") == code
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.search(f"ERROR {message}", error)


@pytest.mark.parametrize(
    "override, message",
    [
        ("validation_fraction=1", "validation_fraction must lie in [0, 1), got 1.0"),
        ("samples_per_shard=0", "samples_per_shard must be at least 1, got 0"),
        ("megabytes_per_shard=0", "megabytes_per_shard must be at least 1"),
        ("max_bad_fraction=2", "max_bad_fraction must lie in [0, 1]"),
        ("workers=-1", "workers must be 0 or more"),
        ("part=3", "part must be NUMBER/COUNT with 0 <= NUMBER < COUNT, such as 3/100, got '3'"),
        ("part=4/4", "part must be NUMBER/COUNT with 0 <= NUMBER < COUNT, such as 3/100, got '4/4'"),
    ],
)
def test_a_wrong_config_names_the_fix(override: str, message: str):
    with pytest.raises(ValueError, match=re.escape(message)):
        load_config(ShardConfig, None, [override])


def test_an_unknown_source_is_an_error(collection: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert shard(collection, tmp_path / "out", "source.name=foldr") == 2
    assert "no source named 'foldr'; did you mean 'folder'?" in capsys.readouterr().err
