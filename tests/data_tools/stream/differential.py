"""Every read of a video compared with a plain sequential decode.

    python -m tests.data_tools.stream.differential [FOLDER ...]

reads every generated video of `matrix.py` and every video below the folders, and prints a table.
"""

import hashlib
import io
import random
import sys
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import av
import numpy as np

from kinemae.data_tools.stream.container import BadVideo, open_video
from kinemae.data_tools.stream.decode import probe
from kinemae.data_tools.stream.frame_decoder import frames_at
from kinemae.data_tools.stream.frame_sampling import last_frame_s
from tests.data_tools.stream import matrix

ENDINGS = {".mp4", ".mov", ".mkv", ".webm", ".avi", ".flv", ".ts", ".mpg", ".ogg", ".gif", ".wmv"}


@dataclass(kw_only=True)
class Compared:
    """The result of one video.

    Attributes:
        frames: of a sequential decode, up to the first damage.
        reads: number of requested frames, in single and joint requests.
        differing: number of these that differ from the sequential decode.
        refused: reason for which the video cannot be read.
        faults: other problems.
    """

    frames: int = 0
    reads: int = 0
    differing: int = 0
    refused: str = ""
    faults: list[str] = field(default_factory=list)


def digest(frame: av.VideoFrame) -> str:
    """Digest of the pixels of a frame."""
    named = hashlib.sha1(f"{frame.format.name} {frame.width} {frame.height}".encode())
    if frame.format.name in ("pal8", "rgb8", "bgra", "rgb24") or frame.format.is_bit_stream:
        frame = frame.reformat(format="rgb24")
    bits = frame.format.components[0].bits
    for plane in frame.planes:
        rows = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)
        samples = plane.width * (3 if frame.format.name == "rgb24" else 1)  # what follows is not defined
        named.update(rows[:, : samples * (1 if bits <= 8 else 2)].tobytes())
    return named.hexdigest()


def sequential(video: bytes) -> list[str]:
    """All frames of a plain FFmpeg decoding loop, up to the first damaged one."""
    found = []
    with av.open(io.BytesIO(video)) as container:
        stream = container.streams.best("video")
        stream.codec_context.thread_count = 1
        for packet in container.demux(stream):
            try:
                for frame in packet.decode() if packet.size or packet.dts is None else ():
                    if frame.is_corrupt:
                        return found
                    found.append(digest(frame))
            except av.InvalidDataError:
                continue
    return found


def our_times(video: bytes, count: int) -> list[float]:
    """Presentation times of the frames, from a sequential decode."""
    with open_video(video) as opened:
        times = [0.0]
        for frame in opened.rest:
            times.append(opened.start_s(frame))
    return times[:count]


def compared(video: bytes, *, seed: int = 0, singles: int = 40) -> Compared:
    """Read a video in every way: all frames at once, with strides, one by one, at random times."""
    result = Compared()
    try:
        info = probe(video)
    except BadVideo as error:
        result.refused = str(error)
        return result
    frames = sequential(video)
    result.frames = len(frames)
    if info.frames != len(frames):
        result.faults.append(f"{info.frames} frames found, {len(frames)} by a sequential decode")
        return result
    times = our_times(video, len(frames))
    if any(one >= other for one, other in pairwise(times)):
        result.faults.append("times do not increase")
        return result
    end_s = last_frame_s(info.frames, info.duration_s)
    for timestamps_s in _reads(times, info.duration_s, random.Random(seed), singles):
        result.reads += len(timestamps_s)
        try:
            got = _read(video, timestamps_s, end_s)
        except BadVideo as error:
            result.faults.append(str(error))
            result.differing += len(timestamps_s)
            continue
        right = [frames[bisect_right(times, timestamp_s + 1e-6) - 1] for timestamp_s in timestamps_s]
        result.differing += sum(one != other for one, other in zip(got, right, strict=True))
    return result


def _reads(
    times: Sequence[float], duration_s: float, draw: random.Random, singles: int
) -> Iterator[list[float]]:
    last = len(times) - 1
    ends = [*times[1:], max(duration_s, times[-1])]
    middles = [(time + end) / 2 for time, end in zip(times, ends, strict=True)]
    yield middles
    for stride in (2, 4, 7):
        begin = draw.randint(0, last)
        yield middles[begin::stride]
    for number in draw.sample(range(last + 1), min(singles, last + 1)):
        yield [middles[number]]
    for _ in range(8):
        yield [draw.uniform(0, duration_s) for _ in range(draw.randint(1, 5))]


def _read(video: bytes, timestamps_s: list[float], end_s: float) -> list[str]:
    found: dict[int, str] = {}
    for frame, places, _ in frames_at(video, timestamps_s, last_frame_s=end_s):
        found.update(dict.fromkeys(places, digest(frame)))
    return [found[place] for place in range(len(timestamps_s))]


def shown(video: bytes) -> tuple[list[int], list[float]]:
    """Frame numbers of a generated video, read in one request, and their presentation times."""
    times = our_times(video, probe(video).frames)
    found: dict[int, int] = {}
    for frame, places, _ in frames_at(video, [time + 1e-4 for time in times]):
        number = matrix.number_of(frame.to_ndarray(format="gray"))
        found.update(dict.fromkeys(places, number))
    return [found[place] for place in range(len(times))], times


def main(folders: Sequence[str]) -> None:
    """Print a row for each video."""
    files = [path for folder in folders for path in sorted(Path(folder).rglob("*")) if path.suffix in ENDINGS]
    named = [*matrix.videos(), *((path.as_posix(), path.read_bytes) for path in files)]
    total = Compared()
    for name, make in named:
        found = compared(make())
        total.frames, total.reads = total.frames + found.frames, total.reads + found.reads
        total.differing += found.differing
        what = found.refused or "; ".join(sorted(set(found.faults)))
        sys.stdout.write(f"{name:60} {found.frames:5} {found.reads:6} {found.differing:5} {what}\n")
        sys.stdout.flush()
    counts = f"{total.frames} frames, {total.reads} reads, {total.differing} differ"
    sys.stdout.write(f"{len(named)} videos, {counts}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
