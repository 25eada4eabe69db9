"""The index is written and read; a missing, damaged or wrong one gives a clear error."""

import json
import pickle
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from kinemae.data_tools.command import DataError
from kinemae.data_tools.index import Sample, Shard, open_index, write_index
from tests.forked import run_forked

SAMPLE = Sample(
    key="a",
    shard=0,
    offset=512,
    length=3,
    crc32=2**32 - 1,
    frames=2,
    duration_s=0.25,
    width=4,
    height=6,
    codec="h264",
    label=1,
    name="\u00e9/a.mp4",
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "shard-000000.tar").write_bytes(b"tar")
    shards = [Shard(name="shard-000000.tar", samples=1, bytes=3, sha256="00")]
    write_index(tmp_path, [SAMPLE], shards, ["x", "\u6253"], {"by": "a test"})
    return tmp_path


def test_written_data_reads_back_equal(folder: Path):
    index = open_index(folder)
    assert index.sample(0) == SAMPLE
    assert index.classes == ("x", "\u6253")
    assert index.column("crc32").tolist() == [2**32 - 1]
    assert index.shard_location(SAMPLE).path == folder / "shard-000000.tar"
    assert not list(folder.glob("*.partial"))


def test_the_fingerprint_depends_on_content_and_not_on_location(folder: Path, tmp_path: Path):
    shutil.copytree(folder, tmp_path / "moved")
    assert open_index(tmp_path / "moved").fingerprint == open_index(folder).fingerprint
    write_index(folder, [SAMPLE], [Shard(name="shard-000000.tar", samples=1, bytes=3, sha256="01")], [], {})
    assert open_index(tmp_path / "moved").fingerprint != open_index(folder).fingerprint


def test_a_missing_folder_is_named(tmp_path: Path):
    with pytest.raises(DataError, match=r"no folder of shards at .*; fix: make one with"):
        open_index(tmp_path / "nothing")


def test_a_folder_without_index_suggests_its_splits(folder: Path, tmp_path: Path):
    shutil.copytree(folder, tmp_path / "sets" / "train")
    with pytest.raises(
        DataError, match=r"expected a data set, got a folder without dataset.json; did you mean .*train\?"
    ):
        open_index(tmp_path / "sets")
    for name in ("shards.arrow", "index.arrow"):
        (folder / name).unlink()
        with pytest.raises(DataError, match=rf"got a folder without {name}"):
            open_index(folder)


@pytest.mark.parametrize("name, data", [("index.arrow", b"garbage"), ("dataset.json", b"{")])
def test_a_damaged_index_is_named(folder: Path, name: str, data: bytes):
    (folder / name).write_bytes(data)
    with pytest.raises(DataError, match=r"is damaged .*; fix: shard the source again"):
        open_index(folder)


def test_another_format_is_named(folder: Path):
    description = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps({**description, "format": 99}))
    with pytest.raises(DataError, match="expected an index of format 3, got 99; fix: install the version"):
        open_index(folder)


def test_a_missing_shard_is_named(folder: Path):
    (folder / "shard-000000.tar").unlink()
    with pytest.raises(DataError, match=r"lacks 1 of its shards, first shard-000000.tar"):
        open_index(folder)


def test_an_empty_data_set_is_named(folder: Path):
    write_index(folder, [], [], [], {})
    with pytest.raises(DataError, match="holds no samples"):
        open_index(folder)


@pytest.mark.nightly
@pytest.mark.slow
def test_opening_reads_no_rows(repo: Path):
    words = ("-m", "tests.benchmarks.index", "--samples", "300000")
    printed = run_forked(*words, PYTHONPATH=str(repo)).stdout
    index_mb = float(re.search(r"samples, ([0-9.]+) GB", printed)[1]) * 1000
    before, after, end = (
        float(found) for found in re.findall(r"^memory .*MB +([0-9.]+)$", printed, re.MULTILINE)[:3]
    )
    assert index_mb > 50
    assert after - before < index_mb / 10
    assert end > after  # the figures include the rows that are read


def test_samples_are_found_in_all_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("kinemae.data_tools.index_writer._ROWS_PER_CHUNK", 3)
    (tmp_path / "shard-000000.tar").write_bytes(b"tar")
    rows = [replace(SAMPLE, key=str(number)) for number in range(10)]
    write_index(tmp_path, rows, [Shard(name="shard-000000.tar", samples=10, bytes=3, sha256="")], [], {})
    index = open_index(tmp_path)
    assert [index.sample(position) for position in range(10)] == rows
    for position in (10, -1):
        with pytest.raises(IndexError, match=f"holds 10 samples, got position {position}"):
            index.sample(position)


def test_a_pickled_index_is_small_and_maps_the_same_file(folder: Path):
    index = open_index(folder)
    copied = pickle.loads(pickle.dumps(index))
    assert len(pickle.dumps(index)) < 1500
    assert copied.sample(0) == index.sample(0) and copied.folder == index.folder


def test_a_truncated_shard_is_named_before_reading(folder: Path):
    (folder / "shard-000000.tar").write_bytes(b"ta")
    message = r"expected the shard shard-000000.tar of 3 bytes, got 2: it was truncated .*; fix: copy"
    with pytest.raises(DataError, match=message):
        open_index(folder)
    assert len(open_index(folder, check_shards=False)) == 1


def test_files_of_different_runs_are_rejected(folder: Path):
    description = json.loads((folder / "dataset.json").read_text())
    description["files"]["index"]["rows"] = 2
    (folder / "dataset.json").write_text(json.dumps(description))
    with pytest.raises(DataError, match=r"expected 2 samples as in dataset.json, got 1 in index.arrow"):
        open_index(folder)


def test_shards_may_be_in_another_folder(folder: Path, tmp_path: Path):
    elsewhere = tmp_path / "elsewhere" / "x.tar"
    elsewhere.parent.mkdir()
    elsewhere.write_bytes(b"tar")
    write_index(folder, [SAMPLE], [Shard(name=str(elsewhere), samples=1, bytes=3, sha256="")], ["x", "y"], {})
    assert open_index(folder).shard_location(SAMPLE).path == elsewhere
    elsewhere.write_bytes(b"ta")
    with pytest.raises(DataError, match=r"expected the shard .*elsewhere/x.tar of 3 bytes, got 2"):
        open_index(folder)
    elsewhere.unlink()
    with pytest.raises(DataError, match=r"lacks 1 of its shards, first .*elsewhere/x.tar"):
        open_index(folder)


def test_an_unreadable_index_is_named(folder: Path):
    (folder / "index.arrow").unlink()
    (folder / "index.arrow").mkdir()
    with pytest.raises(DataError, match=r"the index in .* cannot be read: .*directory"):
        open_index(folder)


def test_a_misspelt_data_set_gets_a_suggestion(synth_shards: Path) -> None:
    with pytest.raises(
        DataError, match=rf"no folder of shards at .*/trian; did you mean {synth_shards}/train\?"
    ):
        open_index(synth_shards / "trian")


def test_a_file_is_not_a_data_set(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(DataError, match=r"notes.txt: expected the folder of a data set, got a file"):
        open_index(tmp_path / "notes.txt")
