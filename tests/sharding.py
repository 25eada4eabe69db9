"""Helpers of the sharding tests: make videos, run `kinemae data shard`, compare the results."""

import io
import json
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import NoReturn

import av
import numpy as np
import pytest
import torch

from kinemae.data_tools.__main__ import PROGRAM
from kinemae.data_tools.command import DataError, run_program
from kinemae.data_tools.encoding.encode import EncodeConfig, write_video
from kinemae.data_tools.index import ShardIndex
from kinemae.data_tools.randomness import generator
from kinemae.data_tools.sharding.output import Output
from kinemae.data_tools.storage.location import Location


def write_clip(path: Path, number: int, *, frames: int = 3, height: int = 16, width: int = 16) -> None:
    """Write a small video of noise; the number is the seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    chance = generator(number, purpose="test")
    frames_THWC = torch.randint(0, 256, (frames, height, width, 3), dtype=torch.uint8, generator=chance)
    write_video(path, frames_THWC, EncodeConfig(crf=40))


def moving(frames: int, height: int = 48, width: int = 64) -> list[np.ndarray]:
    """Make pictures with a grey level for each number and a bright square that moves."""
    pictures = []
    for number in range(frames):
        picture = np.full((height, width, 3), 40 + 5 * (number % 24), np.uint8)
        left = number * 3 % (width - 8)
        picture[height // 2 : height // 2 + 8, left : left + 8] = (250, 120, 30)
        pictures.append(picture)
    return pictures


def encoded(
    pictures: Iterable[np.ndarray],
    *,
    ticks: list[int] | None = None,
    rate: Fraction = Fraction(25),
    is_index_first: bool = False,
    kind: tuple[str, str, str] = ("mp4", "libx264", "yuv420p"),
) -> bytes:
    """Encode an ordinary video.

    Args:
        ticks: time stamps in thousandths of a second.
        is_index_first: write the index first, so that a truncated file still has its duration.
        kind: container, encoder and pixel format.
    """
    pictures = list(pictures)
    options = {"movflags": "faststart"} if is_index_first else {}
    with (
        tempfile.NamedTemporaryFile() as file,
        av.open(file.name, "w", format=kind[0], options=options) as output,
    ):
        stream = output.add_stream(kind[1], rate=rate)
        stream.pix_fmt = kind[2]
        stream.height, stream.width = pictures[0].shape[:2]
        stream.thread_count = 1
        if ticks is not None:
            stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        for number, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            if ticks is not None:
                frame.pts, frame.time_base = ticks[number], Fraction(1, 1000)
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
        output.close()
        return Path(file.name).read_bytes()


def cut_after(video: bytes, packets: int) -> bytes:
    """Truncate a file, made with `is_index_first`, after a packet."""
    with av.open(io.BytesIO(video)) as container:
        ends = sorted((packet.pos or 0) + packet.size for packet in container.demux(video=0) if packet.size)
    return video[: ends[packets - 1]]


MATROSKA = ("matroska", "libx264", "yuv420p")


def shard(source: Path | str, out: Path | str, *overrides: str, workers: int = 1) -> int:
    """Run `kinemae data shard` in this process; return its exit code."""
    return run_program(PROGRAM, ["shard", str(source), str(out), f"workers={workers}", *overrides])


@contextmanager
def stopped_before_shards() -> Iterator[None]:
    """Let `shard` fail when it would write a shard, with all videos stored in the work folder."""

    def stop(*arguments: object) -> NoReturn:
        raise DataError("stopped before the shards")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Output, "write_shard", stop)
        yield


def contents(folder: Path) -> dict[str, bytes]:
    """Read every file of a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_same_output(place: Location, folder: Path) -> None:
    """Compare OUT with a local one; the index files of a URL have other names."""
    for name, content in contents(folder).items():
        parent, _, last = name.rpartition("/")
        inside = place / parent if parent else place
        if last in ("dataset.json", "index.arrow", "shards.arrow"):
            described = json.loads((inside / "dataset.json").read())
            expected = json.loads((folder / parent / "dataset.json").read_text())
            assert described["fingerprint"] == expected["fingerprint"]
            last = last if last == "dataset.json" else described["files"][last.removesuffix(".arrow")]["name"]
        assert last == "dataset.json" or (inside / last).read() == content


def video_bytes(index: ShardIndex) -> dict[str, bytes]:
    """Read all videos by key, each as one range of a shard."""
    found = {}
    for position in range(len(index)):
        sample = index.sample(position)
        found[sample.key] = index.shard_location(sample).read(sample.offset, sample.length)
    return found


def numbered(frames: Iterable[int], height: int = 64, width: int = 96) -> list[np.ndarray]:
    """Make pictures that show their number in ten blocks, lowest bit first, white for 1."""
    pictures = []
    for number in frames:
        picture = np.full((height, width, 3), 90, np.uint8)
        for bit in range(10):
            picture[4:12, 8 + 8 * bit : 16 + 8 * bit] = 235 * (number >> bit & 1)
        pictures.append(picture)
    return pictures


def number_of(luma: np.ndarray, height: int = 64, width: int = 96) -> int:
    """Read the number of a picture made by `numbered`, at any scale."""
    down, across = luma.shape[0] / height, luma.shape[1] / width
    return sum(1 << bit for bit in range(10) if luma[int(8 * down), int((12 + 8 * bit) * across)] > 128)


def numbers_in(video: bytes | Path) -> list[int]:
    """Read the numbers of all frames of a video of `numbered` pictures by a sequential decode."""
    file = io.BytesIO(video) if isinstance(video, bytes) else str(video)
    with av.open(file) as container:
        return [number_of(frame.to_ndarray(format="gray")) for frame in container.decode(video=0)]
