"""A rejection with a temporary cause is not final; `retry_rejected` tries all rejected videos again."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from kinemae.data_tools.index import open_index
from kinemae.data_tools.layouts.base import EncodedSample, Job, Layout
from kinemae.data_tools.layouts.h264 import H264
from kinemae.data_tools.manifest.videos import SourceVideo
from kinemae.data_tools.sharding.transcode import LOG_NAME, transcode
from tests.sharding import contents, encoded, moving, shard


def write(folder: Path, **videos: bytes) -> Path:
    folder.mkdir(exist_ok=True)
    for name, video in videos.items():
        file = folder / f"{name}.mp4"
        file.write_bytes(video)
        os.utime(file, ns=(0, 0))  # the same size and time, so that the log stays valid
    return folder


def names(out: Path) -> list[str]:
    return sorted(open_index(out / "train").column("name").tolist())


def test_an_unfinished_command_tries_rejected_videos_again(tmp_path: Path):
    good = encoded(moving(5))
    source = write(tmp_path / "videos", a=good, b=bytes(len(good)))
    out = tmp_path / "out"
    arguments = (source, out, "validation_fraction=0", "max_bad_fraction=0.1")
    assert shard(*arguments) == 3
    write(source, b=good)  # of the same size and time
    assert shard(*arguments) == 3
    assert shard(*arguments, "retry_rejected=true") == 0
    assert names(out) == ["a.mp4", "b.mp4"]


@pytest.mark.parametrize("is_mended", [True, False])
def test_retry_rejected_rewrites_a_complete_data_set_if_a_video_is_readable_now(
    is_mended: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    good, other = encoded(moving(5)), encoded(moving(6))
    source = write(tmp_path / "videos", a=other, b=bytes(len(good)), c=good)
    out, whole = tmp_path / "out", tmp_path / "whole"
    assert shard(source, out, "validation_fraction=0") == 0
    before = contents(out)
    if is_mended:
        write(source, b=good)
        assert shard(source, whole, "validation_fraction=0") == 0
    assert shard(source, out, "validation_fraction=0") == 0
    assert contents(out) == before
    capsys.readouterr()
    assert shard(source, out, "validation_fraction=0", "retry_rejected=true") == 0
    assert f"{int(is_mended)} of 1 rejected videos are readable now" in capsys.readouterr().err
    assert contents(out) == (contents(whole) if is_mended else before)


def test_retry_rejected_does_nothing_without_rejected_videos(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    source = write(tmp_path / "videos", a=encoded(moving(5)))
    for _ in range(2):
        assert shard(source, tmp_path / "out", "retry_rejected=true") == 0
    assert "is complete already" in capsys.readouterr().err


class Deadly(Layout):
    """A layout that kills its process while a file exists, like the kernel's out-of-memory killer."""

    def __init__(self, file: Path):
        self.file = file

    def encode(self, job: Job) -> Iterator[EncodedSample]:
        if job.video.name == "b" and self.file.exists():
            os.kill(os.getpid(), signal.SIGKILL)
        yield from H264(every=1).encode(job)


@pytest.mark.processes
def test_a_crash_is_not_final(tmp_path: Path):
    source = write(tmp_path / "videos", a=encoded(moving(5)), b=encoded(moving(6)))
    flag = tmp_path / "memory is short"
    flag.touch()
    jobs = [
        Job(video=SourceVideo(path=source / f"{name}.mp4", name=name), key=name, folder=tmp_path)
        for name in "ab"
    ]
    for is_short in (True, False):
        if not is_short:
            flag.unlink()
        done = transcode(jobs, Deadly(flag), tmp_path / "work", workers=2)
        results = [result for _, result in done]
        assert [bool(result.samples) for result in results] == [True, not is_short]
        assert results[1].is_final != is_short
    lines = (tmp_path / "work" / LOG_NAME).read_text().splitlines()
    assert len([line for line in lines if json.loads(line)["samples"]]) == 2


def test_the_log_counts_temporary_rejections(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    source = write(tmp_path / "videos", a=encoded(moving(5)), b=b"no video")
    out = tmp_path / "out"
    assert shard(source, out) == 0
    rejected = out / "rejected.jsonl"
    entry = json.loads(rejected.read_text())
    rejected.write_text(json.dumps({**entry, "reason": "the decoder crashed on it", "is_final": False}))
    capsys.readouterr()
    assert shard(source, out) == 0
    expected = "1 videos were rejected for a temporary cause, first b.mp4: the decoder crashed on it"
    assert expected in capsys.readouterr().err
