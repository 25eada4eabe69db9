"""Differential test of `shard`: every layout stores the frames of a sequential decode of the original.

Each picture shows its number, which identifies the frame after scaling and encoding.
"""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from kinemae.data_tools.layouts.base import EncodedSample, Job
from kinemae.data_tools.layouts.clips import Clips
from kinemae.data_tools.layouts.copy import Copy
from kinemae.data_tools.layouts.h264 import H264
from kinemae.data_tools.layouts.jpegs import Jpegs
from kinemae.data_tools.manifest.videos import SourceVideo, is_video
from kinemae.data_tools.stream.decode import decode_at, probe
from kinemae.data_tools.stream.geometry import rotation
from tests import filming
from tests.sharding import encoded, number_of, numbered, numbers_in

CASES = Path(__file__).resolve().parents[4] / "shared" / "cases"
SHIPPED = Path(__file__).resolve().parents[2] / "data" / "videos"
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


def encode(path: Path, folder: Path, layout: object) -> tuple[list[EncodedSample], list[str]]:
    folder.mkdir(exist_ok=True)
    job = Job(video=SourceVideo(path=path, name=path.name), key="key", folder=folder)
    return list(layout.encode(job)), job.notes  # type: ignore[attr-defined]


def lumas_in(path: Path) -> list[np.ndarray]:
    """The frames of a sequential decode, upright and in grey."""
    lumas = []
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            luma = frame.to_ndarray(format="gray")
            exchange, flip_rows, flip_columns = rotation(frame)
            luma = luma.T if exchange else luma
            luma = luma[::-1] if flip_rows else luma
            lumas.append(np.ascontiguousarray(luma[:, ::-1] if flip_columns else luma))
    return lumas


def shipped_numbers(path: Path) -> list[int]:
    return [filming.number_of(torch.from_numpy(luma)[None]) for luma in lumas_in(path)]


def stored(samples: list[EncodedSample]) -> list[int]:
    return [number for sample in samples for number in numbers_in(sample.file or Path())]


def assert_all_layouts_store(path: Path, source: list[int], folder: Path) -> None:
    """Each layout stores the frames of a constant rate once and in order; the index is right."""
    for layout in (H264(every=1, crf=10), Jpegs(quality=2)):
        samples, _ = encode(path, folder / "out", layout)
        assert stored(samples) == source, layout
        assert samples[0].info.frames == len(source)
    # A clip takes the frame in the middle of each stride.
    samples, _ = encode(path, folder / "clips", Clips(frames=5, stride=4, crf=10))
    expected = source[2 : len(samples) * 20 : 4]
    late = 1 if path.name == "x.mpg" else 0  # some of its time stamps are a frame too late
    assert np.abs(np.subtract(stored(samples), expected)).max() <= late
    [sample], _ = encode(path, folder, Copy())
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
def test_every_layout_stores_the_frames_of_unusual_files(name: str, tmp_path: Path):
    path, (frames, is_variable) = CASES / name, FILES[name]
    if not path.is_file():
        pytest.skip(f"no cases at {CASES}")
    source = numbers_in(path)[:frames]
    if not is_variable:
        assert_all_layouts_store(path, source, tmp_path)
        return
    for layout in (H264(every=1, crf=10), Jpegs(quality=2)):
        numbers = stored(encode(path, tmp_path / "out", layout)[0])
        assert sorted(set(numbers)) == source
        assert numbers == sorted(numbers)


@pytest.mark.parametrize("name", sorted(path.name for path in SHIPPED.iterdir()))
def test_every_layout_stores_the_frames_of_the_files_that_ship(name: str, tmp_path: Path):
    source = shipped_numbers(SHIPPED / name)
    for layout in (H264(every=1, crf=4), Jpegs(quality=2), Copy()):
        [sample], notes = encode(SHIPPED / name, tmp_path / "out", layout)
        numbers = shipped_numbers(sample.file or SHIPPED / name)
        assert sample.info.frames == len(numbers)
        if any("variable" in note for note in notes):
            numbers = sorted(set(numbers))
        assert numbers == source == sorted(source)


@pytest.mark.parametrize(
    "folder, frames",
    [
        ("ucf101_like", {"v_Archery_g01": 164, "v_Biking_g01": 90}),
        ("spatial_video", {"hevc": 11, "media": 5, "a0": 24, "b0": 24}),
    ],
)
@pytest.mark.slow
def test_every_layout_stores_ucf101_and_spatial_video(folder: str, frames: dict[str, int], tmp_path: Path):
    if not CASES.is_dir():
        pytest.skip(f"no cases at {CASES}")
    paths = [path for path in (CASES / folder).rglob("*") if is_video(path.name)]
    for name, count in frames.items():
        path = next(path for path in paths if path.name.startswith(name))
        shown = small_lumas(path)
        assert len(shown) == count
        for layout in (H264(every=1, crf=8, short_side=64), Jpegs(short_side=64), Copy()):
            [sample], notes = encode(path, tmp_path / "out", layout)
            assert (sample.info.frames, notes) == (count, [])
            if sample.file is not None:
                assert np.abs(small_lumas(sample.file) - shown).mean(axis=(1, 2)).max() < 4


def small_lumas(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        frames = [frame.reformat(width=16, height=16) for frame in container.decode(video=0)]
    return np.stack([frame.to_ndarray(format="gray") for frame in frames]).astype(float)
