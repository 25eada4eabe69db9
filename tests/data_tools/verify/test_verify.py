"""`verify` finds and names all damage, and reports intact data sets as such."""

import json
import re
import shutil
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from zlib import crc32

import pytest

from kinemae.data_tools.__main__ import PROGRAM
from kinemae.data_tools.command import DataError, log, run_program
from kinemae.data_tools.index import INDEX_NAME, Sample, open_data_sets, open_index, write_index
from kinemae.data_tools.storage.location import RetryPolicy, location
from kinemae.data_tools.verify.command import verify
from kinemae.data_tools.verify.compare import IndexHandle, SampleJob, failed_sample
from tests.faulty_server import faulty_server
from tests.forked import run_forked


@pytest.fixture
def shards(synth_shards: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(synth_shards / "train", tmp_path / "train"))


def faults_of(folder: Path | str, *, full: bool = False) -> list[str]:
    return [
        str(fault)
        for fault in verify(open_data_sets(location(folder), check_shards=False), full=full, workers=1)
    ]


def rewrite(folder: Path, change: Callable[[Sample], Sample], **described: object) -> None:
    """Rewrite the index with other rows."""
    index = open_index(folder)
    rows = [change(index.sample(position)) for position in range(len(index))]
    made_by = {"command": "data_tools shard"}
    write_index(folder, rows, index.shards, index.classes, made_by)
    if described:
        stored = json.loads((folder / "dataset.json").read_text())
        (folder / "dataset.json").write_text(json.dumps({**stored, **described}))


def flip(path: Path, place: int) -> None:
    with path.open("r+b") as file:
        file.seek(place)
        value = file.read(1)[0]
        file.seek(place)
        file.write(bytes([value ^ 1]))


def headers(path: Path) -> Iterator[tuple[str, int]]:
    with tarfile.open(path) as tar:
        for member in tar:
            yield member.name, member.offset


@pytest.mark.slow
def test_an_intact_data_set_has_no_faults(synth_shards: Path):
    done = run_forked("-m", "data_tools", "verify", str(synth_shards), "--full", "--json", "workers=1")
    result = json.loads(done.stdout)
    assert result["faults"] == [] and result["full"] and result["samples"] == 96
    assert "96 samples in" in done.stderr and "were read and decoded: no faults" in done.stderr


def test_a_missing_shard_is_named(shards: Path):
    (shards / "shard-000001.tar").unlink()
    [fault] = faults_of(shards)
    assert "shard-000001.tar: cannot read the shard and its 16 samples: " in fault and "No such file" in fault


def test_a_shard_cut_between_two_members_is_named_with_its_lost_samples(shards: Path):
    path = shards / "shard-000000.tar"
    members = list(headers(path))
    with path.open("r+b") as file:
        file.truncate(members[20][1])  # webdataset reads the first ten samples without an error
    whole, structure, *lost = faults_of(shards)
    assert f" bytes, got {members[20][1]}: truncated" in whole
    assert f"is cut short after {members[19][0]}" in structure
    assert len(lost) == 6 and all("truncated: 0 of" in fault for fault in lost)
    assert members[21][0].partition(".")[0] in lost[0]


def test_a_flipped_byte_in_a_header_is_found(shards: Path):
    path = shards / "shard-000000.tar"
    name, place = list(headers(path))[6]
    flip(path, place + 3)
    whole, structure = faults_of(shards)
    assert "its sha256 differs from the index" in whole
    assert f"damaged bytes after {list(headers(path))[5][0]}" in structure and name not in whole


def test_a_flipped_byte_in_a_video_is_found_by_name(shards: Path):
    index = open_index(shards)
    sample = index.sample(3)
    flip(index.shard_location(sample).path, sample.offset + sample.length // 2)
    whole, video = faults_of(shards)
    assert "sha256" in whole and f"sample {sample.key}: its checksum differs" in video


def test_a_flipped_byte_in_a_description_is_found(shards: Path):
    index = open_index(shards)
    sample = index.sample(0)
    path = index.shard_location(sample).path
    found = re.search(rb'"frames": [0-9]+', path.read_bytes())
    assert found is not None
    flip(path, found.end() - 1)
    whole, described = faults_of(shards)
    assert (
        "sha256" in whole and f"sample {sample.key}: frames is" in described and "in the index" in described
    )


def test_a_pickled_member_gives_a_warning_and_is_never_opened(
    shards: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(log, "propagate", True)
    path = shards / "shard-000000.tar"
    bomb = f"cos\nsystem\n(S'touch {shards}/exploded'\ntR.".encode()
    with tarfile.open(path, "a") as tar:
        member = tarfile.TarInfo(f"{open_index(shards).sample(0).key}.pyd")
        member.size = len(bomb)
        tar.addfile(member, BytesIO(bomb))
    adopt(shards)
    assert faults_of(shards, full=True) == []
    assert "holds 1 pickled members" in caplog.text and "never read" in caplog.text
    assert not (shards / "exploded").exists()


def adopt(folder: Path) -> None:
    """Describe the shards as they are now."""
    index = open_index(folder, check_shards=False)
    shards = [
        replace(
            shard,
            bytes=(folder / shard.name).stat().st_size,
            sha256=sha256((folder / shard.name).read_bytes()).hexdigest(),
        )
        for shard in index.shards
    ]
    rows = [index.sample(position) for position in range(len(index))]
    write_index(folder, rows, shards, index.classes, index.made_by)


def test_a_member_without_a_row_is_found(shards: Path):
    with tarfile.open(shards / "shard-000000.tar", "a") as tar:
        tar.addfile(tarfile.TarInfo("stranger.mp4"))
    adopt(shards)
    assert [fault.partition(": ")[2] for fault in faults_of(shards)] == ["stranger.mp4 is not in the index"]


def test_a_shard_that_is_not_in_the_index_is_found(shards: Path):
    shutil.copy(shards / "shard-000000.tar", shards / "shard-000009.tar")
    [fault] = faults_of(shards)
    assert fault.endswith("shard-000009.tar: the shard is not in the index")


def later(**changes: Callable[[Sample], object]) -> Callable[[Sample], Sample]:
    """Change the rows of the second shard."""
    return lambda row: (
        replace(row, **{name: change(row) for name, change in changes.items()}) if row.shard else row
    )


@pytest.mark.parametrize(
    "changes, pattern",
    [
        (later(offset=lambda row: row.offset + 512), r"expected \d+ bytes at byte \d+, got no member"),
        (later(length=lambda row: row.length - 1), r"expected \d+ bytes at byte \d+, got .* with \d+ bytes"),
        (later(key=lambda row: f"{row.key}x"), r"its offset is that of .*\.mp4"),
        (later(crc32=lambda row: row.crc32 ^ 1), "its checksum differs"),
        (later(name=lambda row: "other"), r"name is '.*' in .*\.json, 'other' in the index"),
        (later(label=lambda row: 99), "its label is not a class"),
        (later(frames=lambda row: 0), "it has no frames"),
        (later(duration_s=lambda row: 0.0), "its duration is not positive"),
        (later(key=lambda row: "same"), "another sample has the same key"),
        (later(shard=lambda row: 7), "its shard does not exist"),
        (later(shard=lambda row: 0), "expected 16 samples as listed, got 32 rows in the index"),
    ],
)
def test_a_row_that_is_wrong_is_found(shards: Path, changes: Callable[[Sample], Sample], pattern: str):
    rewrite(shards, changes)
    found = faults_of(shards)
    assert any(re.search(pattern, fault) for fault in found), found


def test_an_index_of_another_run_is_found(shards: Path):
    files = json.loads((shards / "dataset.json").read_text())["files"]
    files["index"]["sha256"] = "00"
    rewrite(shards, lambda row: row, files=files)
    replaced, fingerprint = faults_of(shards)
    assert f"{INDEX_NAME} and dataset.json come from different runs" in replaced
    assert "the fingerprint in dataset.json does not match its files" in fingerprint


def test_full_finds_damage_under_a_correct_checksum(shards: Path):
    index = open_index(shards)
    sample = index.sample(5)
    path = index.shard_location(sample).path
    with path.open("r+b") as file:  # damage in the middle of the video, under a checksum that was taken later
        file.seek(sample.offset + sample.length // 2)
        file.write(bytes(range(256)) * 3)
    damaged = path.read_bytes()[sample.offset :][: sample.length]
    rewrite(shards, lambda row: replace(row, crc32=crc32(damaged)) if row.key == sample.key else row)
    adopt(shards)
    assert faults_of(shards) == []
    [fault] = faults_of(shards, full=True)
    assert f"sample {sample.key}: " in fault


def test_full_counts_the_frames(shards: Path):
    rewrite(
        shards,
        lambda row: replace(row, frames=row.frames - 1, duration_s=row.duration_s) if row.shard else row,
    )
    found = [fault for fault in faults_of(shards, full=True) if "when decoded" in fault]
    assert len(found) == 16 and re.search(r"frames is (\d+) when decoded, (\d+) in the index", found[0])


def test_splits_that_share_a_file_or_a_group_are_found(synth_shards: Path, tmp_path: Path):
    out = tmp_path / "out"
    for split in ("train", "validation"):
        shutil.copytree(synth_shards / split, out / split)
    assert faults_of(out) == []
    number = iter(range(100))
    rewrite(out / "train", lambda row: replace(row, content=f"c{next(number)}", group="g"))
    rewrite(out / "validation", lambda row: replace(row, content=f"c{next(number) - 4}", group="g"))
    found = [fault for fault in faults_of(out) if fault.startswith("train and validation: ")]
    assert sum("the same file in both: " in fault and " and " in fault for fault in found) == 4
    assert "the same file in both: 1 more times" in found[3]
    assert "the same group in both: " in found[4] and len(found) == 5


def test_the_command_logs_some_faults_prints_all_as_json_and_exits_with_3(
    shards: Path, capsys: pytest.CaptureFixture[str]
):
    rewrite(shards, lambda row: replace(row, crc32=0))
    assert run_program(PROGRAM, ["verify", str(shards), "--json", "workers=1"]) == 3
    out, err = capsys.readouterr()
    assert len(json.loads(out)["faults"]) == 32
    assert err.count("its checksum differs") == 20
    assert "32 faults in" in err and "12 are not shown, --json has all" in err


@pytest.mark.parametrize("arguments, pattern", [(["workers=-1"], "workers must be 0"), (["fast=1"], "fast")])
def test_a_wrong_argument_is_named(
    shards: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], pattern: str
):
    assert run_program(PROGRAM, ["verify", str(shards), *arguments]) == 2
    assert pattern in capsys.readouterr().err


def test_a_folder_without_data_sets_is_named(tmp_path: Path):
    with pytest.raises(DataError, match=r"got a folder without dataset\.json"):
        open_data_sets(location(tmp_path))


def test_remote_shards_are_verified_and_outages_are_faults(shards: Path):
    with faulty_server(shards.parent) as server:
        retry_policy = RetryPolicy(attempts=8, idle_s=2.0, total_s=10.0, pause_s=0.01)
        index = open_data_sets(location(server.url, retry_policy=retry_policy), check_shards=False)
        assert list(index) == ["train"]
        server.at_random(0.2, seed=3)
        assert list(verify(index, full=True, workers=1)) == []
        server.fault = lambda method, path: 404 if "shard-000001" in path else None
        [fault] = verify(index, full=False, workers=1)
        assert "shard-000001.tar: cannot read the shard and its 16 samples: " in str(fault) and "404" in str(
            fault
        )


def test_a_decoder_that_crashes_costs_one_sample(shards: Path):
    index = open_index(shards)
    [fault] = failed_sample(SampleJob(handle=IndexHandle.of(index), position=2), "the decoder crashed on it")
    assert f"sample {index.sample(2).key}: the decoder crashed on it" in str(fault)


def test_another_machine_opens_the_same_state_of_a_remote_index(shards: Path):
    with faulty_server(shards) as server:
        handle = IndexHandle.of(open_index(server.url, check_shards=False))
        absent = replace(handle, local_index=replace(handle.local_index, folder=Path("/absent")))
        assert absent.open().sample(3) == open_index(shards).sample(3)
        rewrite(shards, lambda row: replace(row, key=f"new-{row.key}"))
        with pytest.raises(DataError, match="has changed"):
            replace(absent, with_removed=True).open()
