"""`kinemae data bench SHARDS [a.b=c]`: measure how fast training reads a data set on this machine.

Each batch of clips is read twice: once as in training, for the rate of one core, and once with a timer around
each step. Times are CPU times of this process, so other programs do not count. The waiting time (disk,
network, other programs) is reported separately. Then the loader runs with its workers, measured by wall-clock
time.
"""

import argparse
import json
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import TypeVar

from kinemae.data_tools.command import DataError
from kinemae.data_tools.config import load_config, require
from kinemae.data_tools.index import ShardIndex, open_index
from kinemae.data_tools.randomness import generator
from kinemae.data_tools.stream.augment import AugmentConfig
from kinemae.data_tools.stream.container import BadVideo, open_container
from kinemae.data_tools.stream.frame_sampling import ClipConfig, last_frame_s, training_timestamps_s
from kinemae.data_tools.stream.loader import training_loader
from kinemae.data_tools.stream.order import BatchPlan
from kinemae.data_tools.stream.training_clips import TrainingClips
from kinemae.data_tools.stream.video_reader import read_video
from kinemae.data_tools.stream.views import View, crop_views, training_view
from kinemae.data_tools.stream.worker_setup import available_cores
from kinemae.data_tools.stream.yuv_planes import yuv_frames_at
from kinemae.data_tools.stream.yuv_to_rgb import Pixels, YuvClips
from kinemae.data_tools.unread import check_is_read

Item = TypeVar("Item")

READ, OPEN, DECODE, PIXELS, REST = "read, checksum", "open", "seek, decode", "crop, resize", "batch, colours"
WHOLE = "whole"
_CLIPS_PER_BATCH = 8  # approximately: a whole number of videos with all their views
_WARMUP = 2  # batches per worker before and after the measured ones


@dataclass(frozen=True, kw_only=True)
class BenchData:
    """The keys of `data` that affect the reading speed; same meaning as in training.

    Attributes:
        views_per_video: clips cut from one decoded video.
    """

    views_per_video: int = 1

    def __post_init__(self) -> None:
        require(self.views_per_video >= 1, "data.views_per_video", "be at least 1", self.views_per_video)


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """Settings; `clip`, `augment` and `data` as in training.

    Attributes:
        seed: of the order of the clips.
        clips: number of clips that each pass reads.
        workers: processes of the last pass; 0 means one per core.
        gpu_clips_per_s: speed of a GPU, for the number of cores that it needs.
    """

    clip: ClipConfig = field(default_factory=ClipConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    data: BenchData = field(default_factory=BenchData)
    seed: int = 0
    clips: int = 256
    workers: int = 0
    gpu_clips_per_s: float = 1000.0

    def __post_init__(self) -> None:
        require(self.clips >= 1, "clips", "be at least 1", self.clips)
        require(self.workers >= 0, "workers", "be 0 or more", self.workers)
        require(self.gpu_clips_per_s > 0, "gpu_clips_per_s", "be above 0", self.gpu_clips_per_s)


@dataclass(frozen=True, kw_only=True)
class BenchResult:
    """The measured times.

    Attributes:
        clips: clips of each pass, rounded up to whole videos.
        skipped: clips among them whose video could not be read.
        clips_per_s_per_core: by CPU time, in one process.
        wait_s: wall-clock time minus CPU time of the first pass.
        seconds: CPU time of each step, over all clips.
        workers, clips_per_s: processes of the last pass and their total rate by wall-clock time.
        cores_for_gpu: number of cores that read `gpu_clips_per_s`.
    """

    clips: int
    skipped: int
    clips_per_s_per_core: float
    wait_s: float
    seconds: dict[str, float]
    workers: int
    clips_per_s: float
    gpu_clips_per_s: float
    cores_for_gpu: float


def run_bench(arguments: argparse.Namespace) -> None:
    """Run the command."""
    settings = load_config(BenchConfig, None, arguments.overrides)
    index = open_index(arguments.shards)
    check_is_read(index, "bench")
    result = bench(index, settings)
    text = json.dumps(asdict(result)) if arguments.json else as_text(result)
    sys.stdout.write(text + "\n")


def bench(index: ShardIndex, settings: BenchConfig) -> BenchResult:
    """Measure a data set.

    Raises:
        DataError: no clip can be read.
    """
    clips = TrainingClips(
        index,
        clip=settings.clip,
        augment=settings.augment,
        seed=settings.seed,
        views=settings.data.views_per_video,
    )
    videos = max(_CLIPS_PER_BATCH // clips.views, 1)
    batches = -(-settings.clips // (videos * clips.views))
    clips.batch(range(videos * clips.views))  # warm-up: imports
    whole, steps, skipped = Clock(), Clock(), 0
    wall_s = 0.0
    for number in range(batches):
        begin = time.perf_counter()
        skipped += whole.time(WHOLE, lambda first=number: _batch(clips, first, videos))  # type: ignore[misc]
        wall_s += time.perf_counter() - begin
        for position in range(number * videos, (number + 1) * videos):
            with suppress(BadVideo):  # counted in the first pass
                step_by_step(clips, position, steps)
    count, cpu_s = batches * videos * clips.views, whole.seconds[WHOLE]
    if skipped == count:
        raise DataError(
            f"{index.folder}: expected clips that can be read, got none of {count}; fix: run "
            f"`kinemae data verify {shlex.quote(str(index.folder))}`"
        )
    workers = settings.workers or available_cores()
    return BenchResult(
        clips=count,
        skipped=skipped,
        clips_per_s_per_core=count / cpu_s,
        wait_s=max(wall_s - cpu_s, 0.0),
        seconds=_own_seconds(steps.seconds, cpu_s),
        workers=workers,
        clips_per_s=_loader_rate(clips, videos * clips.views, batches, workers),
        gpu_clips_per_s=settings.gpu_clips_per_s,
        cores_for_gpu=settings.gpu_clips_per_s * cpu_s / count,
    )


def as_text(result: BenchResult) -> str:
    """Format the result as a table."""
    whole_s = sum(result.seconds.values()) or 1.0
    rows = [
        f"{name:16s}{1000 * seconds / result.clips:8.2f} ms{100 * seconds / whole_s:6.0f} %"
        for name, seconds in result.seconds.items()
    ]
    lines = [
        f"{result.clips} clips, {result.skipped} of them unreadable",
        f"one core        {result.clips_per_s_per_core:8.1f} clips/s",
        "of which, per clip",
        *rows,
        f"waiting         {1000 * result.wait_s / result.clips:8.2f} ms",
        f"{result.workers} workers       {result.clips_per_s:8.1f} clips/s in total",
        f"a GPU with {result.gpu_clips_per_s:g} clips/s needs {result.cores_for_gpu:.1f} such cores",
    ]
    return "\n".join(lines)


class Clock:
    """CPU time by step."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys((WHOLE, READ, OPEN, DECODE, PIXELS), 0.0)

    def time(self, step: str, work: Callable[[], Item]) -> Item:
        """Run `work` and add its time to a step."""
        begin = time.process_time()
        try:
            return work()
        finally:
            self.seconds[step] += time.process_time() - begin

    def each(self, step: str, items: Iterator[Item]) -> Iterator[Item]:
        """Yield the items; add the time to make them, but not the time to use them, to a step."""
        missing = object()
        while (item := self.time(step, lambda: next(items, missing))) is not missing:
            yield item  # type: ignore[misc]


def _batch(clips: TrainingClips, number: int, videos: int) -> int:
    """Read a batch; return the number of skipped clips."""
    size = videos * clips.views
    return len(clips.batch(range(number * size, (number + 1) * size)).skipped)


def _own_seconds(seconds: dict[str, float], whole_s: float) -> dict[str, float]:
    """Time of each step without nested steps. The last step gets the rest of the whole time."""
    own = {step: seconds[step] for step in (READ, OPEN, DECODE, PIXELS)}
    own[DECODE] = max(own[DECODE] - own[OPEN], 0.0)  # decoding includes opening the file
    return {**own, REST: max(whole_s - sum(own.values()), 0.0)}


def step_by_step(clips: TrainingClips, position: int, clock: Clock) -> Pixels:
    """Repeat `TrainingClips.batch` for one video with a timer around each step, without colour jitter.

    Raises:
        BadVideo: the video cannot be read.
    """
    found = clips.locate(position)
    sample, first_clip = found.sample, position * clips.views
    draw = generator(clips.seed, purpose="start", sample=position)
    timestamps_s = training_timestamps_s(sample, clips.clip, draw)
    draws = [
        generator(clips.seed, purpose="augment", sample=first_clip + view) for view in range(clips.views)
    ]

    def choose(height: int, width: int) -> list[View]:
        return [training_view(height, width, clips.augment, draw) for draw in draws]

    video = clock.time(READ, lambda: read_video(found.index, sample))
    clock.time(OPEN, lambda: _open(video))
    end_s = last_frame_s(sample.frames, sample.duration_s)
    frames = yuv_frames_at(video, timestamps_s, last_frame_s=end_s)
    pixels = YuvClips.empty(clips.views, clips.clip.frames, clips.clip.size)
    before_s = clock.seconds[DECODE]
    clock.time(PIXELS, lambda: crop_views(clock.each(DECODE, frames), choose, pixels))
    clock.seconds[PIXELS] -= clock.seconds[DECODE] - before_s
    return pixels


def _open(video: bytes) -> None:
    with open_container(video) as (container, stream):
        next(container.demux(stream))


def _loader_rate(clips: TrainingClips, batch_clips: int, batches: int, workers: int) -> float:
    """Total rate of several workers, measured while all of them are busy."""
    plan = BatchPlan(global_clips=batch_clips, world=1, micro_clips=batch_clips, accumulation=1)
    steps = batches + 2 * _WARMUP * workers
    loader = training_loader(clips, plan, rank=0, first_step=0, last_step=steps, workers=workers, pin=False)
    for _ in range(_WARMUP * workers):
        next(loader)
    begin = time.perf_counter()
    for _ in range(batches):
        next(loader)
    return batches * batch_clips / (time.perf_counter() - begin)
