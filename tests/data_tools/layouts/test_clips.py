"""Pre-cut clips hold exactly the frames of a training clip."""

from pathlib import Path

import pytest

from kinemae.data_tools.layouts.base import EncodedSample, Job
from kinemae.data_tools.layouts.clips import Clips
from kinemae.data_tools.manifest.videos import SourceVideo
from kinemae.data_tools.stream.decode import decode_at, probe
from tests.sharding import cut_after, encoded, moving


def encode(video: bytes, folder: Path, **arguments: object) -> list[EncodedSample]:
    path = folder / "original"
    path.write_bytes(video)
    job = Job(video=SourceVideo(path=path, name="original"), key="key", folder=folder)
    return list(Clips(**arguments).encode(job))  # type: ignore[arg-type]


def test_as_many_clips_as_fit(tmp_path: Path):
    samples = encode(encoded(moving(75)), tmp_path, frames=8, stride=2)
    assert [sample.key for sample in samples] == ["key-0000", "key-0001", "key-0002", "key-0003"]
    assert [sample.info.frames for sample in samples] == [8] * 4
    assert [sample.start_s for sample in samples] == pytest.approx([0, 0.64, 1.28, 1.92])
    assert all(sample.info.duration_s == pytest.approx(8 * 2 / 25) for sample in samples)
    assert len(list(tmp_path.iterdir())) == 5


def test_the_frames_of_a_clip_are_a_stride_apart(tmp_path: Path):
    video = encoded(moving(75))
    for sample in encode(video, tmp_path, frames=5, stride=4, clips=3, crf=10):
        assert sample.file is not None
        stored = decode_at(sample.file.read_bytes(), [(n + 0.5) * 4 / 25 for n in range(5)])
        wanted = decode_at(video, [sample.start_s + (4 * n + 2.5) / 25 for n in range(5)])
        assert (stored.float() - wanted.float()).abs().mean() < 2


@pytest.mark.parametrize(
    "clips, starts", [(1, [30]), (2, [0, 60]), (3, [0, 30, 60]), (9, [0, 15, 30, 45, 60])]
)
def test_a_number_of_clips_is_spread_evenly(clips: int, starts: list[int], tmp_path: Path):
    samples = encode(encoded(moving(75)), tmp_path, frames=15, stride=1, clips=clips)
    assert [round(sample.start_s * 25) for sample in samples] == starts
    assert [sample.info.frames for sample in samples] == [15] * len(starts)


def test_a_short_video_gives_one_clip_of_all_frames(tmp_path: Path):
    [sample] = encode(encoded(moving(21)), tmp_path, frames=16, stride=4)
    assert (sample.info.frames, sample.start_s) == (5, 0)
    assert sample.file is not None
    assert probe(sample.file).frames == 5


def test_an_incomplete_last_clip_is_dropped(tmp_path: Path):
    whole = encoded(moving(60), is_index_first=True, kind=("mp4", "mpeg4", "yuv420p"))
    samples = encode(cut_after(whole, 50), tmp_path, frames=20, stride=1)
    assert len(samples) == 2
    assert all(sample.info.frames == 20 for sample in samples)
    assert len(list(tmp_path.glob("*.mp4"))) == len(samples)
