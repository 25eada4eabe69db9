"""Compare encodings of stored videos: bytes, clips per second of one core, quality of the frames of clips.

    taskset -c 0 nice -n 5 python tests/benchmarks/layouts.py VIDEOS WORK         # a folder of real videos
    taskset -c 0 nice -n 5 python tests/benchmarks/layouts.py VIDEOS WORK --crf 23,26 --only full,half

Sources are `--videos` evenly spaced files of VIDEOS, and `--long` concatenations of `--joined` files each.
All encodings store the same frames: scaled to a short side of 256, at 1 / every of the source's frame rate.
A clip has 16 frames, 4 frames of the source apart, from a random start, cropped to 224x224 in planes.

    full         every frame of the source
    half         every 1st, 2nd or 4th frame, for a rate near 15 frames per second
    quarter      every 1st, 2nd or 4th frame, for a rate near 7.5 frames per second
    ordinary     x264's settings of the preset
    fast         the same without CABAC and deblocking, which decodes faster
    plain        as fast, without B frames
    aligned-N    as fast; every N-th stored frame is a reference frame, and clips start at one of them

g: stored frames between key frames. Quality is that of the frames which clips of stride 4 can show, against
the scaled source: mean PSNR and SSIM of luma. Time is CPU time on one thread; the encodings alternate, and
ratios are medians over repeats. With several values of `--crf`, bytes and speed are also interpolated to the
PSNR of the first row. The layout `h264` is "half aligned-2 g32".
"""

import argparse
import io
import json
import statistics
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import torch
from av.video.frame import VideoFrame

from kinemae.data_tools.encoding.encode import EncoderSettings, write_frames
from kinemae.data_tools.encoding.resample import resample
from kinemae.data_tools.encoding.source_decoder import open_source
from kinemae.data_tools.manifest.videos import VIDEO_EXTENSIONS, SourceVideo
from kinemae.data_tools.randomness import generator
from kinemae.data_tools.stream.augment import AugmentConfig
from kinemae.data_tools.stream.views import View, crop_views, training_view
from kinemae.data_tools.stream.yuv_planes import yuv_frames_at
from kinemae.data_tools.stream.yuv_to_rgb import YuvClips

FRAMES, SIZE, SHORT_SIDE = 16, 224, 256
STRIDE = 4  # of clips, in frames of the source
OTHER_STRIDES = (1, 2, 8)
QUALITY_FRAMES = 12  # per video and encoding
FAST = "scenecut=0:cabac=0:no-deblock=1:weightp=0:open-gop=0:mbtree=0"
ALIGNED = f"b-adapt=0:b-pyramid=none:{FAST}"
CRF = 23


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """One way to store a video.

    Attributes:
        fps: target frame rate; None for that of the source. Every 1st, 2nd or 4th frame is stored.
        aligned: every n-th stored frame is a reference frame, and clips start there.
    """

    name: str
    x264: str
    gop: int
    fps: float | None = None
    aligned: int = 1

    def every(self, rate: Fraction) -> int:
        """Return which frames of the source are stored: every n-th."""
        if self.fps is None:
            return 1
        return 2 ** min(max(round(float(np.log2(float(rate) / self.fps))), 0), 2)

    def settings(self, crf: int) -> EncoderSettings:
        """Return the settings for `write_frames`."""
        options = {"crf": str(crf), "preset": "veryfast", "forced-idr": "1", "x264-params": self.x264}
        return EncoderSettings(codec="libx264", options=options, gop=self.gop)


def _aligned(name: str, aligned: int, gop: int, fps: float | None) -> Encoding:
    x264 = f"bframes={aligned - 1}:{ALIGNED}"
    return Encoding(name=f"{name} g{gop}", x264=x264, gop=gop, fps=fps, aligned=aligned)


ENCODINGS = (
    _aligned("full aligned-4", 4, 32, None),
    Encoding(name="full ordinary g32", x264="open-gop=0:mbtree=0", gop=32),
    Encoding(name="full fast g32", x264=FAST, gop=32),
    _aligned("half plain", 1, 16, 15),
    _aligned("half aligned-2", 2, 16, 15),
    _aligned("half aligned-2", 2, 32, 15),
    _aligned("quarter plain", 1, 8, 7.5),
    _aligned("quarter plain", 1, 16, 7.5),
)


@dataclass(frozen=True)
class Stored:
    """A stored video: its bytes, frames, seconds, and the step between frames of the source."""

    video: bytes
    frames: int
    duration_s: float
    every: int
    aligned: int

    def timestamps_s(self, stride: int, chance: torch.Generator) -> list[float]:
        """Draw a clip at a stride in frames of the source; the last frame is repeated if it is too short."""
        step = max(stride // self.every, 1)
        unit = self.aligned if step % self.aligned == 0 else 1
        starts = range(0, max(self.frames - (FRAMES - 1) * step, 1), unit)
        start = starts[int(torch.rand((), generator=chance) * len(starts))]
        places = [start + number * step for number in range(FRAMES)]
        last = (self.frames - 1) // unit * unit
        return [(min(place, last) + 0.5) * self.duration_s / self.frames for place in places]


@dataclass
class Result:
    """What one encoding at one crf gave for all videos."""

    stored: list[Stored] = field(default_factory=list)
    psnr: list[float] = field(default_factory=list)
    ssim: list[float] = field(default_factory=list)
    seconds: dict[int, list[float]] = field(default_factory=dict)  # CPU seconds per clip, by stride

    @property
    def megabytes(self) -> float:
        return sum(len(each.video) for each in self.stored) / 1e6


Curves = dict[str, dict[int, Result]]
"""Results by encoding and crf."""


def sources(folder: Path, count: int, long: int, joined: int) -> list[list[Path]]:
    """Return the files of each source video: one, or several to join."""
    files = sorted(path for path in folder.rglob("*") if path.suffix[1:].lower() in VIDEO_EXTENSIONS)
    chosen = files[:: max(len(files) // count, 1)][:count]
    rest = [file for file in files if file not in set(chosen)]
    begins = [number * len(rest) // max(long, 1) for number in range(long)]
    return [*([file] for file in chosen), *(rest[begin : begin + joined] for begin in begins)]


def joined_frames(files: list[Path]) -> tuple[list[VideoFrame], Fraction]:
    """Decode and join videos; all have the size of the first frame."""
    frames: list[VideoFrame] = []
    rate = Fraction(30)
    for file in files:
        frames_of_file, rate = scaled(file)
        first = frames[0] if frames else frames_of_file[0]
        frames += [frame.reformat(first.width, first.height) for frame in frames_of_file]
    return frames, rate


def scaled(file: Path) -> tuple[list[VideoFrame], Fraction]:
    """Decode and scale a video as layouts do."""
    with open_source(SourceVideo(path=file, name=file.name), notes=[]) as source:
        video = resample(source, fps=None, short_side=SHORT_SIDE)
        # A frame that is shown twice is one object; encoders need one per position.
        return [
            VideoFrame.from_ndarray(f.to_ndarray(), format=f.format.name) for f in video.frames
        ], video.rate


def encode(frames: list[VideoFrame], rate: Fraction, encoding: Encoding, crf: int, file: Path) -> Stored:
    """Encode the frames of a source."""
    every = encoding.every(rate)
    info = write_frames(file, frames[::every], rate / every, encoding.settings(crf))
    aligned = encoding.aligned
    return Stored(file.read_bytes(), info.frames, info.duration_s, every, aligned)


def quality(frames: list[VideoFrame], stored: Stored) -> tuple[float, float]:
    """Mean PSNR and SSIM of frames that clips can show."""
    possible = range(0, stored.frames, stored.aligned)
    wanted = set(possible[:: max(len(possible) // QUALITY_FRAMES, 1)])
    values = []
    with av.open(io.BytesIO(stored.video)) as container:
        for number, frame in enumerate(container.decode(video=0)):
            if number in wanted:
                values.append(compare(luma(frame), luma(frames[number * stored.every])))
    psnr, ssim = np.mean(values, axis=0).tolist()
    return psnr, ssim


def compare(one_HW: np.ndarray, other_HW: np.ndarray) -> tuple[float, float]:
    """PSNR (at most 60 dB) and SSIM with a Gaussian window of 11 pixels (Wang et al. 2004)."""
    error = float(np.square(one_HW - other_HW).mean())
    mean = [cv2.GaussianBlur(each, (11, 11), 1.5) for each in (one_HW, other_HW)]
    product = [(0, 0), (1, 1), (0, 1)]
    pair = (one_HW, other_HW)
    var_1, var_2, covariance = (
        cv2.GaussianBlur(pair[a] * pair[b], (11, 11), 1.5) - mean[a] * mean[b] for a, b in product
    )
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    top = (2 * mean[0] * mean[1] + c1) * (2 * covariance + c2)
    bottom = (mean[0] ** 2 + mean[1] ** 2 + c1) * (var_1 + var_2 + c2)
    return 10 * float(np.log10(255**2 / max(error, 0.065))), float((top / bottom).mean())


def luma(frame: VideoFrame) -> np.ndarray:
    """The luma plane as floats."""
    plane = frame.planes[0]
    grey = np.frombuffer(memoryview(plane), np.uint8).reshape(plane.height, plane.line_size)
    return grey[:, : plane.width].astype(np.float32)


def clip_s(videos: Iterable[Stored], stride: int, repeat: int) -> float:
    """CPU seconds per clip, from the bytes of a video to planes of the batch."""
    pixels = YuvClips.empty(1, FRAMES, SIZE)
    start, count = time.process_time(), 0
    for number, stored in enumerate(videos):
        chance = generator(0, purpose=f"benchmark/{repeat}", sample=number)

        def choose(height: int, width: int, chance: torch.Generator = chance) -> list[View]:
            return [training_view(height, width, AugmentConfig(), chance)]

        crop_views(yuv_frames_at(stored.video, stored.timestamps_s(stride, chance)), choose, pixels)
        count += 1
    return (time.process_time() - start) / count


def measure_speeds(curves: Curves, repeat: int) -> None:
    """Add the seconds per clip of each encoding and stride."""
    for stride in (STRIDE, *OTHER_STRIDES):
        for result in (each for curve in curves.values() for each in curve.values()):
            if all(each.every <= stride for each in result.stored):
                result.seconds.setdefault(stride, []).append(clip_s(result.stored, stride, repeat))


def at_psnr(curve: dict[int, Result], values: list[float], target: float) -> float:
    """The value at a PSNR, by a straight line through its logarithm at each crf; nan for a single crf."""
    if len(values) < 2:
        return float("nan")
    line = np.polyfit([statistics.mean(each.psnr) for each in curve.values()], np.log(values), 1)
    return float(np.exp(np.polyval(line, target)))


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("work", type=Path, help="folder for encoded videos")
    parser.add_argument("--videos", type=int, default=100)
    parser.add_argument("--long", type=int, default=10, help="number of concatenations")
    parser.add_argument("--joined", type=int, default=10, help="videos of a concatenation")
    parser.add_argument("--repeats", type=int, default=6)
    parser.add_argument("--crf", default=str(CRF), help="one or more values, separated by commas")
    parser.add_argument("--only", default="", help="prefixes of the names of encodings")
    options = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    crfs = [int(text) for text in options.crf.split(",")]
    chosen = [each for each in ENCODINGS if each.name.startswith(tuple(options.only.split(",")))]
    curves = {each.name: {crf: Result() for crf in crfs} for each in chosen}
    options.work.mkdir(parents=True, exist_ok=True)
    for number, files in enumerate(sources(options.folder, options.videos, options.long, options.joined)):
        sys.stderr.write(f"{number}: {files[0].name} {len(files)}\n")
        add_source(options.work, files, curves)
    for repeat in range(options.repeats):
        measure_speeds(curves, repeat)
        sys.stderr.write(f"repeat {repeat}\n")
    report(curves)


def add_source(work: Path, files: list[Path], curves: Curves) -> None:
    """Encode a source in all ways, and measure the quality; finished results in `work` are kept."""
    frames: list[VideoFrame] = []
    rate = Fraction(30)
    for name, curve in curves.items():
        [encoding] = [each for each in ENCODINGS if each.name == name]
        for crf, result in curve.items():
            file = work / f"{files[0].parent.name}-{files[0].stem}-{len(files)}-{name}-{crf}.mp4"
            facts = file.with_suffix(".json")
            if not facts.exists():
                if not frames:
                    frames, rate = joined_frames(files)
                stored = encode(frames, rate, encoding, crf, file)
                psnr, ssim = quality(frames, stored)
                facts.write_text(
                    json.dumps([stored.frames, stored.duration_s, stored.every, stored.aligned, psnr, ssim])
                )
            *numbers, psnr, ssim = json.loads(facts.read_text())
            result.stored.append(Stored(file.read_bytes(), *numbers))
            result.psnr.append(psnr)
            result.ssim.append(ssim)


def report(curves: Curves) -> None:
    """Print a row for each encoding and crf; speeds and bytes relative to the first row."""
    base = next(iter(next(iter(curves.values())).values()))
    target = statistics.mean(base.psnr)
    durations_s = [each.duration_s for each in base.stored]
    print(
        f"{len(durations_s)} videos, {sum(durations_s):.0f} s in all, {min(durations_s):.1f} to "
        f"{max(durations_s):.1f} s, median {statistics.median(durations_s):.1f} s"
    )
    strides = (STRIDE, *OTHER_STRIDES)
    names = ["encoding", "crf", "MB", "bytes", "PSNR", "SSIM", *(f"speed at stride {s}" for s in strides)]
    print("|", " | ".join([*names, "bytes at equal PSNR", "speed at equal PSNR"]), "|")
    for name, curve in curves.items():
        sizes = [each.megabytes / base.megabytes for each in curve.values()]
        speeds = [speed(each, base, STRIDE) or 0 for each in curve.values()]
        equal = [f"{at_psnr(curve, values, target):.2f}" for values in (sizes, speeds)]
        for (crf, result), size in zip(curve.items(), sizes, strict=True):
            quality = [f"{statistics.mean(result.psnr):.2f}", f"{statistics.mean(result.ssim):.4f}"]
            ratios = [speed(result, base, stride) for stride in strides]
            columns = [name, str(crf), f"{result.megabytes:.2f}", f"{size:.2f}", *quality]
            columns += ["-" if ratio is None else f"{ratio:.2f}" for ratio in ratios]
            print("|", " | ".join([*columns, *equal]), "|")
    print(f"first row: {1 / statistics.median(base.seconds[STRIDE]):.0f} clips/s at stride {STRIDE}")


def speed(result: Result, base: Result, stride: int) -> float | None:
    """Return the median ratio of speeds at a stride; None if that stride is not stored."""
    pairs = zip(base.seconds.get(stride, []), result.seconds.get(stride, []), strict=False)
    ratios = [one / other for one, other in pairs]
    return statistics.median(ratios) if ratios else None


if __name__ == "__main__":
    main()
