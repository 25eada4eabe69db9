"""Benchmark clips per second of one core, from files to a batch, against common loaders.

    python tests/benchmarks/loader.py                      # both collections: some minutes, more at first
    python tests/benchmarks/loader.py --clips 16 --repeats 2 --only generated

A clip has 16 frames at stride 4 from a random start, 224x224, in a batch in CPU memory. Collections: real
clips (`--real FOLDER`, skipped if there are none) and generated ones (a moving textured scene with noise,
10 s of 30 fps at 256x340, H.264 with x264's default settings). Rows:

    VideoMAE-style     PyAV from the key frame before to the last frame, only the 16 converted to RGB; PIL
                       multi-scale crop and resize; normalized floats
    torchcodec         exact, one thread, the 16 frames; torchvision v2 random resized crop on uint8
    the same, GOP 30   on files with a key frame every 30 frames
    the same, h264     on the files of the default layout
    ours, originals    `TrainingClips` on the same files, in shards of the layout `copy`
    ours, h264         on shards of the default layout
    ours, 4 views      four clips of each decoded range of frames
    bare decoder       PyAV with skip_frame=NONREF on these files: the same frames, no pixels

The other loaders read whole files and get the 16 frame numbers, drawn like ours. Ours read shards, verify
each checksum, and return uint8 planes; conversion to RGB belongs to the device, and its cost on this CPU is
printed below. The rows alternate; ratios are medians of the ratios per repeat. Time is CPU time on one
thread.
"""

import argparse
import io
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import torch
from loader_videos import Collection, generated, real
from peers import why_missing
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from kinemae.data_tools.index import Sample, ShardIndex
from kinemae.data_tools.randomness import generator
from kinemae.data_tools.stream.frame_decoder import frames_at
from kinemae.data_tools.stream.frame_sampling import training_timestamps_s
from kinemae.data_tools.stream.loader import AugmentConfig, ClipConfig, TrainingClips
from kinemae.data_tools.stream.video_reader import read_video
from kinemae.data_tools.stream.views import View, crop_views, training_view
from kinemae.data_tools.stream.yuv_planes import yuv_frames_at
from kinemae.data_tools.stream.yuv_to_rgb import YuvClips

CLIP = ClipConfig()
AUGMENT = AugmentConfig()
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
VIDEOMAE, TORCHCODEC = "VideoMAE-style", "torchcodec exact + v2"
TORCHCODEC_30, TORCHCODEC_ALIGNED = "the same, GOP 30", "the same, h264"
ORIGINALS, ALIGNED, VIEWS, BARE = "ours, originals", "ours, h264", "ours, 4 views", "bare decoder"
REAL = Path(__file__).resolve().parents[3] / "shared" / "videos" / "surveillance"

NO_TORCHCODEC = why_missing("torchcodec.decoders", "torchcodec")

# (first, count) -> clips
Row = Callable[[int, int], object]


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--real", type=Path, default=REAL, help="folder of videos")
    parser.add_argument("--videos", type=int, default=40, help="maximum number of real videos")
    parser.add_argument("--clips", type=int, default=32, help="clips per row and repeat")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", choices=["real", "generated"])
    parser.add_argument(
        "--cache", type=Path, default=Path(tempfile.gettempdir()) / "kinemae-loader-benchmark"
    )
    arguments = parser.parse_args()
    if NO_TORCHCODEC:
        print(NO_TORCHCODEC)
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    arguments.cache.mkdir(parents=True, exist_ok=True)
    if arguments.only != "generated" and arguments.real.is_dir():
        report(real(arguments.real, arguments.videos, arguments.cache), arguments)
    if arguments.only != "real":
        report(generated(arguments.cache), arguments)


def report(videos: Collection, arguments: argparse.Namespace) -> None:
    """Measure the rows alternately and print them, then the phases of our reader."""
    rows = rows_of(videos)
    for row in rows.values():
        row(0, 4)  # warm-up
    rounds = [
        {name: cpu_s(row, repeat, arguments.clips) for name, row in rows.items()}
        for repeat in range(arguments.repeats)
    ]
    megabytes = [
        sum(shard.bytes for shard in index.shards) / 1e6 for index in (videos.originals, videos.aligned)
    ]
    print(
        f"{videos.name}: {len(videos.files)} videos, {megabytes[0]:.1f} MB, {megabytes[1]:.1f} MB "
        f"in the layout h264; {arguments.clips} clips x {arguments.repeats} repeats, one core"
    )
    print(f"{'':24}{'clips/s':>9}{'best':>8}   times {VIDEOMAE}   times {TORCHCODEC}   of the bare decoder")
    for name in rows:
        rate = statistics.median(1 / times[name] for times in rounds)
        best = max(1 / times[name] for times in rounds)
        ratios = [ratio_to(other, name, rounds) for other in (VIDEOMAE, TORCHCODEC, BARE)]
        print(f"{name:24}{rate:9.1f}{best:8.1f}{ratios[0]:>17}{ratios[1]:>24}{ratios[2]:>22}")
    print_phases(videos.aligned, arguments.clips)


def ratio_to(other: str, name: str, rounds: list[dict[str, float]]) -> str:
    """Return the speed relative to another row, or "-" if that one is missing."""
    if other not in rounds[0]:
        return "-"
    return f"{statistics.median(times[other] / times[name] for times in rounds):.2f}"


def cpu_s(row: Row, repeat: int, clips: int) -> float:
    """Measure CPU seconds per clip."""
    start = time.process_time()
    row(repeat * clips, clips)
    return (time.process_time() - start) / clips


def rows_of(videos: Collection) -> dict[str, Row]:
    """Return all rows of a collection."""
    ours = {
        ORIGINALS: TrainingClips(videos.originals, clip=CLIP, augment=AUGMENT, seed=0),
        ALIGNED: TrainingClips(videos.aligned, clip=CLIP, augment=AUGMENT, seed=0),
        VIEWS: TrainingClips(videos.aligned, clip=CLIP, augment=AUGMENT, seed=0, views=4),
    }
    rows: dict[str, Row] = {
        VIDEOMAE: lambda first, count: torch.stack(
            [videomae_clip(*clip) for clip in peer_clips(videos.originals, videos.files, first, count)]
        ),
    }
    if NO_TORCHCODEC is None:
        rows |= rows_of_torchcodec(videos)
    for name, clips in ours.items():
        rows[name] = lambda first, count, clips=clips: clips.batch(range(first, first + count))
    rows[BARE] = lambda first, count: [bare_clip(*clip) for clip in bare_clips(videos.aligned, first, count)]
    return rows


def rows_of_torchcodec(videos: Collection) -> dict[str, Row]:
    """Return the torchcodec rows, one for each kind of file."""
    files = {TORCHCODEC: (videos.originals, videos.files), TORCHCODEC_ALIGNED: (videos.aligned, None)}
    if videos.files_30:
        files = {TORCHCODEC: files[TORCHCODEC], TORCHCODEC_30: (videos.originals, videos.files_30), **files}
    return {
        name: lambda first, count, of=of: torch.stack(
            [torchcodec_clip(*clip) for clip in peer_clips(*of, first, count)]
        )
        for name, of in files.items()
    }


def draws(index: ShardIndex, first: int, count: int) -> Iterator[tuple[Sample, torch.Generator]]:
    """Yield videos in order, each with its own generator."""
    for number in range(first, first + count):
        yield index.sample(number % len(index)), generator(0, purpose="benchmark", sample=number)


def peer_clips(
    index: ShardIndex, files: dict[str, Path] | None, first: int, count: int
) -> Iterator[tuple[bytes, list[int], torch.Generator]]:
    """Yield the bytes of a file, or of a sample if no files are given, and 16 frame numbers."""
    for sample, chance in draws(index, first, count):
        period_s = sample.duration_s / sample.frames
        timestamps_s = training_timestamps_s(sample, CLIP, chance)
        video = files[Path(sample.name).name].read_bytes() if files else stored(index, sample)
        yield video, [int(at / period_s) for at in timestamps_s], chance


def videomae_clip(video: bytes, frames: list[int], chance: torch.Generator) -> Tensor:
    """As in VideoMAE's datasets: decord, GroupMultiScaleCrop, Stack, ToTorchFormatTensor, GroupNormalize."""
    needed, pictures = set(frames), {}
    with av.open(io.BytesIO(video)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        rate, start = stream.average_rate or Fraction(25), stream.start_time or 0
        tick = stream.time_base or Fraction(1)
        container.seek(start + int(frames[0] / rate / tick), stream=stream)
        for frame in container.decode(stream):
            number = round(((frame.pts or 0) - start) * tick * rate)
            if number in needed:
                pictures[number] = frame.to_image(threads=1)
            if number >= frames[-1]:
                break
    images = [pictures.get(number) or next(reversed(pictures.values())) for number in frames]
    box = multi_scale_box(*images[0].size, chance)
    images = [image.crop(box).resize((CLIP.size, CLIP.size), Image.Resampling.BILINEAR) for image in images]
    stacked = np.concatenate([np.asarray(image) for image in images], axis=2)
    clip = torch.from_numpy(stacked).permute(2, 0, 1).contiguous().float().div(255)
    clip = clip.view(len(images), 3, CLIP.size, CLIP.size)
    for channel, (mean, std) in enumerate(zip(MEAN, STD, strict=True)):
        clip[:, channel].sub_(mean).div_(std)
    return clip.transpose(0, 1)


def multi_scale_box(width: int, height: int, chance: torch.Generator) -> tuple[int, int, int, int]:
    """Draw one of VideoMAE's scales at a random position."""
    sides = [int(min(width, height) * scale) for scale in (1, 0.875, 0.75, 0.66)]
    i, j = (int(draw * 4) for draw in torch.rand(2, generator=chance).tolist())
    down, right = torch.rand(2, generator=chance).tolist()
    top, left = int(down * (height - sides[i])), int(right * (width - sides[j]))
    return left, top, left + sides[j], top + sides[i]


TRANSFORM = v2.Compose(
    [v2.RandomResizedCrop(CLIP.size, scale=(0.5, 1.0), antialias=True), v2.RandomHorizontalFlip()]
)


def torchcodec_clip(video: bytes, frames: list[int], _: torch.Generator) -> Tensor:
    """Use (T, H, W, C) memory, on which torchvision's resize is fastest."""
    from torchcodec.decoders import VideoDecoder

    decoder = VideoDecoder(video, dimension_order="NHWC", num_ffmpeg_threads=1, seek_mode="exact")
    last = (decoder.metadata.num_frames or 1) - 1
    batch = decoder.get_frames_at([min(frame, last) for frame in frames])
    return TRANSFORM(batch.data.permute(0, 3, 1, 2)).transpose(0, 1)


def stored(index: ShardIndex, sample: Sample) -> bytes:
    """Read the bytes of a sample without a checksum."""
    return (index.folder / index.shards[sample.shard].name).read(sample.offset, sample.length)


def bare_clips(index: ShardIndex, first: int, count: int) -> Iterator[tuple[bytes, float, float]]:
    """Yield the bytes of a stored video, and the times of a clip's first and last frame."""
    for sample, chance in draws(index, first, count):
        timestamps_s = training_timestamps_s(sample, CLIP, chance)
        early_s = 0.499 * sample.duration_s / sample.frames  # timestamps are in the middle of a frame
        yield stored(index, sample), timestamps_s[0], timestamps_s[-1] - early_s


def bare_clip(video: bytes, first_s: float, last_s: float) -> int:
    """Decode the frames of a clip without reading pixels."""
    with av.open(io.BytesIO(video)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        stream.codec_context.skip_frame = "NONREF"
        tick_s = float(stream.time_base or 1)
        container.seek(int(first_s / tick_s), stream=stream)
        frames = 0
        for frame in container.decode(stream):
            frames += 1
            if (frame.pts or 0) * tick_s + 2e-3 >= last_s:
                break
    return frames


def print_phases(index: ShardIndex, count: int) -> None:
    """Print the time of each phase for a clip in the layout h264."""
    spent_s = np.zeros(4)
    for sample, chance in draws(index, 0, count):
        timestamps_s = training_timestamps_s(sample, CLIP, chance)
        start = time.process_time()
        video = read_video(index, sample)
        read = time.process_time()
        for _ in frames_at(video, timestamps_s):
            pass
        decoded = time.process_time()
        pixels = YuvClips.empty(1, CLIP.frames, CLIP.size)

        def choose(height: int, width: int, chance: torch.Generator = chance) -> list[View]:
            return [training_view(height, width, AUGMENT, chance)]

        crop_views(yuv_frames_at(video, timestamps_s), choose, pixels)
        made = time.process_time()
        pixels.rgb()
        spent_s += read - start, decoded - read, made - decoded, time.process_time() - made
    read_ms, decode_ms, all_ms, rgb_ms = 1000 * spent_s / count
    print(
        f"ours, ms per clip: {read_ms:.2f} to read and check, {decode_ms:.2f} to open, seek and decode, "
        f"{all_ms - decode_ms:.2f} to crop and resize; RGB on this CPU would cost {rgb_ms:.2f}\n"
    )


if __name__ == "__main__":
    main()
