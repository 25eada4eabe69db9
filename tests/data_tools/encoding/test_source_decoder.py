"""Frames read from an original: the given segment, and the intact frames of a truncated capture."""

import io
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from kinemae.data_tools.layouts.base import Job, Layout
from kinemae.data_tools.layouts.copy import Copy
from kinemae.data_tools.layouts.h264 import H264
from kinemae.data_tools.layouts.jpegs import Jpegs
from kinemae.data_tools.manifest.videos import SourceVideo
from kinemae.data_tools.stream.decode import decode_at
from tests.sharding import number_of, numbered, numbers_in


def recorded(
    frames: int,
    container: str,
    *,
    sound_s: float = 0.0,
    delay_s: float = 0.0,
    movflags: str = "",
    bframes: str = "2",
) -> bytes:
    """A numbered recording at 25 frames a second, its pictures `delay_s` behind its sound."""
    file = io.BytesIO()
    options = {"movflags": movflags} if movflags else {}
    with av.open(file, "w", format=container, options=options) as output:
        x264 = {"crf": "18", "g": "10", "bf": bframes}
        stream = output.add_stream("libx264", rate=25, options=x264)
        stream.height, stream.width, stream.pix_fmt = 64, 96, "yuv420p"
        if sound_s:
            voice = output.add_stream("aac", rate=16000)
            samples = np.zeros((1, int(16000 * sound_s)), np.float32)
            frame = av.AudioFrame.from_ndarray(samples, "fltp", "mono")
            frame.sample_rate, frame.pts, frame.time_base = 16000, 0, Fraction(1, 16000)
            output.mux([*voice.encode(frame), *voice.encode()])
        for number, picture in enumerate(numbered(range(frames))):
            shown = av.VideoFrame.from_ndarray(picture, format="rgb24")
            shown.pts, shown.time_base = number + round(25 * delay_s), Fraction(1, 25)
            output.mux(stream.encode(shown))
        output.mux(stream.encode())
    return file.getvalue()


def stored(video: SourceVideo, folder: Path, layout: Layout) -> tuple[list[int], list[str]]:
    folder.mkdir(exist_ok=True)
    job = Job(video=video, key="key", folder=folder)
    [sample] = layout.encode(job)
    if sample.file is not None:
        return numbers_in(sample.file), job.notes
    step_s = sample.info.duration_s / sample.info.frames
    shown = decode_at(video.path.read_bytes(), [(n + 0.5) * step_s for n in range(sample.info.frames)])
    return [number_of(luma) for luma in shown.float().mean(dim=1).numpy()], job.notes


@pytest.mark.parametrize("layout", [H264(every=1, crf=10), Jpegs(quality=2)])
@pytest.mark.parametrize("container", ["mp4", "matroska", "mpegts"])
def test_a_segment_counts_from_the_first_frame(container: str, layout: Layout, tmp_path: Path):
    """Times are not relative to the container's start, which the sound sets here."""
    path = tmp_path / "video"
    path.write_bytes(recorded(40, container, sound_s=1.6, delay_s=0.4))
    with av.open(str(path)) as opened:
        video = opened.streams.video[0]
        assert float(video.start_time * video.time_base) - opened.start_time / 1e6 > 0.3
    part = SourceVideo(path=path, name="part", start_s=0.2, end_s=0.6)
    assert stored(part, tmp_path / "out", layout)[0] == list(range(5, 15))


@pytest.mark.parametrize("layout", [H264(every=1, crf=10), Jpegs(quality=2), Copy()])
@pytest.mark.parametrize("bframes", ["0", "2"])
@pytest.mark.parametrize(
    "container, movflags",
    [("mp4", "frag_keyframe+empty_moov"), ("mpegts", ""), ("matroska", ""), ("flv", "")],
)
def test_a_truncated_capture_gives_its_intact_frames(
    container: str, movflags: str, bframes: str, layout: Layout, tmp_path: Path
):
    whole = recorded(60, container, movflags=movflags, bframes=bframes)
    path = tmp_path / "video"
    for share in (0.7, 0.73, 0.76):
        path.write_bytes(whole[: int(len(whole) * share)])
        numbers, notes = stored(SourceVideo(path=path, name="video"), tmp_path / "out", layout)
        assert numbers[0] == 0 and 20 < numbers[-1] < 59
        # B frames that were cut off leave a hole before the last frame; `copy` is read at even times.
        assert len(set(numbers)) >= numbers[-1] + 1 - (0 if bframes == "0" else 4)
        assert all("its end is damaged" in note or " frames" in note for note in notes)
