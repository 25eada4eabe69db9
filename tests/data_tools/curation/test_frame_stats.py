"""Curation columns of known videos: motion, blur, text, cuts and hashes are measured as they were made."""

import io
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from kinemae.data_tools.__main__ import main
from kinemae.data_tools.curation.frame_stats import COLUMNS, HASH_BITS, FrameStats
from kinemae.data_tools.index import open_index
from kinemae.data_tools.layouts.base import Job
from kinemae.data_tools.layouts.copy import Copy
from kinemae.data_tools.manifest.videos import SourceVideo
from tests.sharding import encoded, shard, write_clip

RATE = Fraction(24)


def texture(seed: int, *, height: int = 128, width: int = 192) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def still(picture: Image.Image, count: int = 24) -> list[np.ndarray]:
    return [np.asarray(picture)] * count


def stats_of(pictures: Sequence[np.ndarray], pixel_format: str = "yuv420p") -> dict[str, int | float | str]:
    stats = FrameStats()
    frames = (
        av.VideoFrame.from_ndarray(one, format="rgb24").reformat(format=pixel_format) for one in pictures
    )
    assert sum(1 for _ in stats.observe(frames, RATE)) == len(pictures)
    return stats.columns()


def bits(one: object, other: object) -> int:
    return (int(str(one), 16) ^ int(str(other), 16)).bit_count()


def test_all_columns_are_there_with_their_types() -> None:
    found = stats_of(still(texture(0)))
    assert {name: type(value) for name, value in found.items()} == COLUMNS
    assert len(str(found["phash"])) * 4 == HASH_BITS


def test_motion_is_the_mean_change_in_a_quarter_of_a_second() -> None:
    greys = [np.full((64, 64, 3), 40 + 2 * number, np.uint8) for number in range(48)]
    found = stats_of(greys)
    assert found["motion"] == pytest.approx(12, abs=0.3)  # 6 frames of 2 levels
    assert (found["static_share"], found["blank_share"]) == (0.0, 1.0)
    assert stats_of(still(texture(0)))["static_share"] == 1.0
    assert stats_of(still(texture(0)))["blank_share"] == 0.0


def test_a_frozen_half_is_static() -> None:
    moving = [np.roll(np.asarray(texture(0)), 6 * number, axis=1) for number in range(24)]
    assert stats_of(moving + moving[-1:] * 24)["static_share"] == pytest.approx(0.5, abs=0.1)


def test_sharpness_falls_with_blur() -> None:
    sharp = Image.fromarray(np.random.default_rng(0).integers(0, 256, (128, 192, 3), dtype=np.uint8))
    blurred = [sharp.filter(ImageFilter.GaussianBlur(radius)) for radius in (0, 1, 3)]
    first, second, third = (float(stats_of(still(one))["sharpness"]) for one in blurred)
    assert first > 5 * second > 25 * third


def test_text_overlay_is_about_the_share_of_the_picture_with_text() -> None:
    plain = texture(1, height=256, width=256)
    marked = plain.copy()
    draw = ImageDraw.Draw(marked)
    for top in range(0, 64, 12):
        draw.text((0, top), "CAMERA 07 2026-11-29 12:34:56 PARKING LOT NORTH", fill="white")
    assert stats_of(still(plain))["text_overlay"] == 0
    assert 0.05 < float(stats_of(still(marked))["text_overlay"]) < 0.3


def scdet_cuts(pictures: Sequence[np.ndarray]) -> int:
    """Reference: FFmpeg's detector on every frame."""
    graph = av.filter.Graph()
    height, width = pictures[0].shape[:2]
    source = graph.add_buffer(width=width, height=height, format="yuv420p", time_base=1 / RATE)
    graph.link_nodes(source, graph.add("scdet"), graph.add("buffersink"))
    graph.configure()
    found = 0
    for number, picture in enumerate(pictures):
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuv420p")
        frame.pts, frame.time_base = number, 1 / RATE
        graph.vpush(frame)
        found += "lavfi.scd.time" in graph.vpull().metadata
    return found


def test_scene_cuts_are_those_of_ffmpeg() -> None:
    scenes = [np.asarray(texture(seed)) for seed in range(5)]
    pictures = [np.roll(scene, number, axis=1) for scene in scenes for number in range(20)]
    assert stats_of(pictures)["scene_cuts"] == scdet_cuts(pictures) == 4
    assert stats_of(pictures[:20])["scene_cuts"] == 0


def shots(seed: int, **size: int) -> Iterator[np.ndarray]:
    return (np.asarray(texture(seed + number // 12, **size)) for number in range(48))


def test_the_hash_survives_resizing_and_reencoding() -> None:
    first = stats_of(list(shots(0)))["phash"]
    small = encoded(shots(0, height=80, width=120), rate=RATE)
    with av.open(io.BytesIO(small)) as container:
        again = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert bits(first, stats_of(again)["phash"]) <= 8
    assert bits(first, stats_of(list(shots(50)))["phash"]) > 64


@pytest.mark.parametrize("pixel_format", ["yuv444p", "yuvj420p", "yuv420p10le", "gray", "rgb24"])
def test_pixel_formats_give_the_same_columns(pixel_format: str) -> None:
    blocks = texture(3).resize((24, 16)).resize((192, 128), Image.Resampling.NEAREST)
    pictures = [np.roll(np.asarray(blocks), 4 * number, axis=1) for number in range(24)]
    one, other = stats_of(pictures), stats_of(pictures, pixel_format)
    assert other["motion"] == pytest.approx(one["motion"], rel=0.05)
    assert other["sharpness"] == pytest.approx(one["sharpness"], rel=0.05)
    assert bits(one["phash"], other["phash"]) <= 4


def test_a_rotation_in_the_metadata_is_applied(tmp_path: Path) -> None:
    pictures = [np.roll(np.asarray(texture(5)), 4 * number, axis=1) for number in range(24)]
    path = tmp_path / "turned.mp4"
    path.write_bytes(encoded([np.rot90(one).copy() for one in pictures], rate=RATE))
    turned = path.with_name("marked.mp4")
    with av.open(str(path)) as source, av.open(str(turned), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    # The display matrix of a quarter turn, in the header of the track.
    content = turned.read_bytes()
    upright = b"".join(value.to_bytes(4, "big") for value in (1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30))
    quarter = [0, 1 << 16, 0, (1 << 32) - (1 << 16), 0, 0, 0, 0, 1 << 30]
    at = content.index(upright, content.index(b"tkhd"))
    turned.write_bytes(
        content[:at] + b"".join(value.to_bytes(4, "big") for value in quarter) + content[at + 36 :]
    )
    [sample] = Copy().encode(
        Job(video=SourceVideo(path=turned, name="a.mp4"), key="a", folder=tmp_path, curate=True)
    )
    assert (sample.info.width, sample.info.height) == (192, 128)
    assert bits(sample.columns["phash"], stats_of(pictures)["phash"]) <= 8


@pytest.mark.parametrize("layout", ["h264", "copy", "clips", "jpegs"])
def test_shard_writes_the_columns_into_index_and_tar(layout: str, tmp_path: Path) -> None:
    for number in range(3):
        write_clip(tmp_path / f"videos/walk/{number}.mp4", number, frames=16)
    out = tmp_path / "out"
    assert shard(tmp_path / "videos", out, "validation_fraction=0", f"layout.name={layout}") == 0
    index = open_index(out / "train")
    assert index.extra == tuple(sorted(COLUMNS))
    before = (out / "train/index.arrow").read_bytes()
    rebuilt = tmp_path / "rebuilt"
    assert main(["index", str(out / "train"), str(rebuilt), "workers=1"]) == 0
    [again] = rebuilt.rglob("index.arrow")
    assert again.read_bytes() == before
    bare = tmp_path / "bare"
    assert shard(tmp_path / "videos", bare, "curate=false") == 0
    assert open_index(bare / "train").extra == ()


def test_a_column_of_the_source_with_the_same_name_is_an_error(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_clip(tmp_path / "a.mp4", 0)
    table = tmp_path / "list.csv"
    table.write_text("path,motion\na.mp4,0.5\n")
    assert shard(table, tmp_path / "out") == 2
    assert "got 'motion'; fix: rename it with source.args.columns.my_motion=motion" in capfd.readouterr().err
    assert shard(table, tmp_path / "out", "source.args.columns.my_motion=motion") == 0
    assert open_index(tmp_path / "out/train").column("my_motion").tolist() == [0.5]
