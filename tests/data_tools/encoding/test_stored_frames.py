"""Differential test of `shard`: every layout stores the frames of a sequential decode of the original.

Each picture carries its number, so that frames are told apart after scaling and encoding.
"""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from data_tools.layouts.base import Laid, Task
from data_tools.layouts.clips import Clips
from data_tools.layouts.copy import Copy
from data_tools.layouts.jpegs import Jpegs
from data_tools.layouts.stride_aligned import StrideAligned
from data_tools.listing.videos import SourceVideo
from data_tools.stream.decode import decode_at, probe
from tests.sharding import encoded, number_of, numbered, numbers_in

CASES = Path(__file__).resolve().parents[4] / "shared" / "cases"
FRAMES = 45
# Containers and encoders: (container, encoder, pixel format).
KINDS = [
    ("mp4", "libx264", "yuv420p"),
    ("mp4", "libx265", "yuv420p10le"),
    ("mov", "prores_ks", "yuv422p10le"),
    ("mov", "libx264", "yuv444p"),
    ("matroska", "libx264", "yuv420p"),
    ("matroska", "ffv1", "yuv420p"),
    ("webm", "libvpx", "yuv420p"),
    ("webm", "libvpx-vp9", "yuv420p"),
    ("avi", "libx264", "yuv420p"),
    ("avi", "mpeg4", "yuv420p"),
    ("avi", "mjpeg", "yuvj420p"),
    ("flv", "libx264", "yuv420p"),
    ("flv", "flv", "yuv420p"),
    ("mpegts", "libx264", "yuv420p"),
    ("mpegts", "mpeg2video", "yuv420p"),
    ("mpeg", "mpeg1video", "yuv420p"),
    ("vob", "mpeg2video", "yuv420p"),
    ("asf", "wmv2", "yuv420p"),
    ("gif", "gif", "rgb8"),
]
FILES = {  # cases: (frames, whether the rate varies)
    "avi_h264_bframes/cam.avi": (90, False),
    "old_containers/x.mpg": (60, False),
    "old_containers/x.flv": (60, False),
    "old_containers/x.wmv": (60, False),
    "old_containers/x.mkv": (60, False),
    "old_containers/x.mov": (60, False),
    "ts_clean/capture.ts": (83, False),
    "intra_refresh/screen.mp4": (200, False),
    "intra_refresh/screen.ts": (200, False),
    "interlaced/tff.mp4": (60, False),
    "interlaced/mpeg2.mpg": (60, False),
    "anamorphic/pal16x9.mp4": (30, False),
    "phone_vfr/flat.mp4": (100, True),
    "spatial_video/a0.mp4": (24, False),
}


def laid(path: Path, folder: Path, layout: object) -> tuple[list[Laid], list[str]]:
    folder.mkdir(exist_ok=True)
    task = Task(video=SourceVideo(path=path, name=path.name), key="key", folder=folder)
    return list(layout.lay(task)), task.notes  # type: ignore[attr-defined]


def stored(samples: list[Laid]) -> list[int]:
    return [number for sample in samples for number in numbers_in(sample.file or Path())]


def assert_all_layouts_store(path: Path, source: list[int], folder: Path) -> None:
    """Each layout stores the frames of a constant rate once and in order; the index is right."""
    for layout in (StrideAligned(crf=10), Jpegs(quality=2)):
        samples, _ = laid(path, folder / "out", layout)
        assert stored(samples) == source, layout
        assert samples[0].info.frames == len(source)
    # A clip takes the frame in the middle of each stride.
    samples, _ = laid(path, folder / "clips", Clips(frames=5, stride=4, crf=10))
    expected = source[2 : len(samples) * 20 : 4]
    late = 1 if path.name == "x.mpg" else 0  # some of its time stamps are a frame too late
    assert np.abs(np.subtract(stored(samples), expected)).max() <= late
    [sample], _ = laid(path, folder, Copy())
    info = sample.info
    assert info == probe(path) and info.frames == len(source)
    middles_s = [(number + 0.5) * info.duration_s / info.frames for number in range(info.frames)]
    shown = decode_at(path.read_bytes(), middles_s)
    lumas = shown.float().mean(dim=1).numpy()
    assert np.abs(np.subtract([number_of(luma) for luma in lumas], source)).max() <= late


@pytest.mark.parametrize("kind", KINDS, ids=["-".join(kind[:2]) for kind in KINDS])
def test_every_layout_stores_the_frames_of_a_sequential_decode(kind: tuple[str, str, str], tmp_path: Path):
    path = tmp_path / "video"
    path.write_bytes(encoded(numbered(range(FRAMES)), rate=Fraction(25), kind=kind))
    source = numbers_in(path)
    assert source == list(range(FRAMES))
    assert_all_layouts_store(path, source, tmp_path)


@pytest.mark.parametrize("name", FILES)
def test_every_layout_stores_the_frames_of_strange_files(name: str, tmp_path: Path):
    path, (frames, is_varying) = CASES / name, FILES[name]
    if not path.is_file():
        pytest.skip(f"no cases at {CASES}")
    source = numbers_in(path)[:frames]
    if not is_varying:
        assert_all_layouts_store(path, source, tmp_path)
        return
    for layout in (StrideAligned(crf=10), Jpegs(quality=2)):
        numbers = stored(laid(path, tmp_path / "out", layout)[0])
        assert sorted(set(numbers)) == source
        assert numbers == sorted(numbers)
