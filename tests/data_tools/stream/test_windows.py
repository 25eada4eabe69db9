"""Plain video files as a data set, and their windows: equal to those of shards, in bounded memory."""

import os
import shutil
from pathlib import Path

import pytest
import torch

from kinemae.data_tools.command import DataError
from kinemae.data_tools.index import open_index
from kinemae.data_tools.storage.location import RetryPolicy, StorageUnavailable, location
from kinemae.data_tools.stream import evaluation_clips
from kinemae.data_tools.stream.evaluation_clips import EvaluationItem, EvaluationVideos
from kinemae.data_tools.stream.frame_sampling import ClipConfig, SlidingClips
from kinemae.data_tools.stream.video_files import open_video_files
from kinemae.data_tools.stream.windows import read_windows
from tests.faulty_server import faulty_server
from tests.sharding import shard

CLIP = ClipConfig(frames=8, stride=2, size=32)
SLIDING = SlidingClips(overlap=0.5)


@pytest.fixture(scope="module")
def files(repo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped videos of all kinds in two subfolders."""
    folder = tmp_path_factory.mktemp("files")
    shutil.copytree(repo / "tests/data/videos", folder / "a")
    (folder / "b").mkdir()
    shutil.move(folder / "a/av1.mp4", folder / "b/av1.mp4")
    return folder


def items_of(index, *, is_divided: bool, monkeypatch) -> list[EvaluationItem]:
    monkeypatch.setattr(evaluation_clips, "_BYTES_PER_ITEM", 1 if is_divided else 64 << 20)
    videos = EvaluationVideos(index, range(len(index)), clip=CLIP, temporal_clips=SLIDING, spatial_crops=1)
    return list(read_windows(videos))


def test_windows_of_plain_files_are_those_of_copied_shards(files: Path, tmp_path: Path, monkeypatch) -> None:
    index = open_video_files(files, tmp_path / "index", workers=1).index
    shard(files, tmp_path / "shards", "layout.name=copy", "validation_fraction=0", "workers=1")
    copied = open_index(tmp_path / "shards/train")
    position = {name: place for place, name in enumerate(copied.column("name").tolist())}
    copied = copied.view([position[name] for name in index.column("name").tolist()])
    sequential = items_of(index, is_divided=True, monkeypatch=monkeypatch)
    assert len({item.position for item in sequential}) == len(index) == 13 < len(sequential)
    reference = items_of(copied, is_divided=False, monkeypatch=monkeypatch)
    assert [item.skipped for item in reference] == [None] * len(copied)
    for name in ("luma_BTHW", "chroma_BCTHW", "colour_BX"):
        both = (
            torch.cat([getattr(each.pixels, name) for each in items]) for items in (sequential, reference)
        )
        assert torch.equal(*both)
    assert torch.equal(*(torch.cat([each.time_VT for each in items]) for items in (sequential, reference)))


def test_a_file_that_changes_meanwhile_is_reported_by_name(files: Path, tmp_path: Path, monkeypatch) -> None:
    shutil.copy(files / "a/vp9.webm", tmp_path / "changed.webm")
    index = open_video_files(tmp_path / "changed.webm", tmp_path / "index", workers=1).index
    with (tmp_path / "changed.webm").open("ab") as file:
        file.write(b"more")
    for is_divided in (True, False):
        items = items_of(index, is_divided=is_divided, monkeypatch=monkeypatch)
        assert all("changed.webm" in item.skipped.reason for item in items if item.skipped)
        assert all(item.skipped for item in items) == is_divided
        assert all(item.time_VT.isnan().all() for item in items if item.skipped)


def test_unreadable_and_changed_files(files: Path, tmp_path: Path, monkeypatch) -> None:
    for name in ("a.webm", "b.webm"):
        shutil.copy(files / "a/vp9.webm", tmp_path / name)
    (tmp_path / "c.mp4").write_bytes(b"no video")
    found = open_video_files(tmp_path, tmp_path / "index", workers=1)
    assert found.index.column("key").tolist() == ["a.webm", "b.webm"]
    assert list(found.failed) == ["c.mp4"] and "FFmpeg cannot read it" in found.failed["c.mp4"]
    shutil.copy(files / "a/h264_b_frames.mp4", tmp_path / "b.webm")
    assert open_video_files(tmp_path, tmp_path / "index", workers=1).index.sample(1).codec == "h264"


def test_results_in_the_source_and_paths_outside_utf8_are_no_samples(files: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "videos").mkdir(parents=True)
    for name in (b"a.webm", b"out/videos/a.webm.mp4", b"\xff.webm"):
        shutil.copy(files / "a/vp9.webm", os.fsencode(tmp_path) + b"/" + name)
    found = open_video_files(tmp_path, out / "index", out=out, workers=1)
    assert found.index.column("key").tolist() == ["a.webm"]
    assert found.failed == {"\\xff.webm": "expected a path in UTF-8, got other bytes; fix: rename it"}
    with pytest.raises(ValueError, match="expected a folder for results, got SOURCE; fix: choose another"):
        open_video_files(tmp_path, tmp_path / "index", out=tmp_path, workers=1)


@pytest.mark.parametrize(
    "name, message",
    [
        ("none", "none: expected a video, a folder of videos or a URL, got no such file or folder"),
        ("empty", "empty: expected videos, got a folder without any; fix: give a folder with files such as"),
        ("bad.mp4", "bad.mp4: expected readable videos, got none; first error: bad.mp4: FFmpeg cannot read"),
    ],
)
def test_a_source_without_videos_is_an_error(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    with pytest.raises(DataError, match=message):
        open_video_files(tmp_path / name, tmp_path / "index", workers=1)


def test_a_url_is_downloaded_once_and_complete_or_not_at_all(files: Path, tmp_path: Path) -> None:
    with faulty_server(files / "a") as server:
        policy = RetryPolicy(attempts=2, idle_s=1, total_s=2, pause_s=0.01)
        place = location(server.url, retry_policy=policy) / "vp9.webm"
        server.script("cut", *["reset"] * 9)
        with pytest.raises(StorageUnavailable, match=r"cannot read http://.*vp9.webm"):
            open_video_files(place, tmp_path / "index", workers=1, outage_s=0)
        assert not list((tmp_path / "index/downloads").iterdir())
        server.script()
        for _ in range(2):
            found = open_video_files(place, tmp_path / "index", workers=1)
        assert len(server.ranges()) == len(server.injected) + 1
    assert (tmp_path / "index/downloads/vp9.webm").read_bytes() == (files / "a/vp9.webm").read_bytes()
    assert found.index.column("key").tolist() == ["vp9.webm"]
