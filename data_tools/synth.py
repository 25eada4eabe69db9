"""`kinemae data synth OUT`: a synthetic data set of H.264 videos whose labels depend only on motion.

    OUT/synth.json                     the config; written first, so that a stopped run can be resumed
    OUT/train/CLASS/000000.mp4         few videos with labels
    OUT/validation/CLASS/000000.mp4
    OUT/unlabelled/000000.mp4          many videos of all classes

With a `task` of `synthetic_tasks`, videos are in OUT/SPLIT, and OUT/videos.csv has their label columns.

Each video is a function of (seed, task, split, class, number). So the splits share no texture, the result
does not depend on the number of processes, and a rerun with larger counts keeps the existing videos.
"""

import argparse
import csv
import dataclasses
import functools
import io
import json
import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from kinemae.data_tools.command import log, writing_to
from kinemae.data_tools.config import load_config, require
from kinemae.data_tools.encoding.encode import EncodeConfig, write_video
from kinemae.data_tools.files import atomic_write_text
from kinemae.data_tools.pool import imap
from kinemae.data_tools.progress import progress
from kinemae.data_tools.randomness import generator
from kinemae.data_tools.storage.location import local_out
from kinemae.data_tools.synthetic_scenes import MOTIONS, SceneConfig, make_scene
from kinemae.data_tools.synthetic_tasks import (
    MIN_EVENT_FRAMES,
    TASKS,
    Scenario,
    TaskConfig,
    columns_of,
    cue_of,
    draw_scenario,
    is_move,
    render_scenario,
)

CONFIG_NAME = "synth.json"
MANIFEST_NAME = "videos.csv"
_SPLITS = ("train", "validation", "unlabelled")


@dataclass(frozen=True, kw_only=True)
class SynthConfig:
    """Settings of the data set.

    Attributes:
        seed: each video is a function of seed, task, split, class and number.
        task: "motion": the class is the motion of the whole video. The others are in `synthetic_tasks`.
        train_per_class, validation_per_class: labelled videos per class; other tasks have as many in total.
        unlabelled: videos without labels, evenly from all classes.
        classes: names from `synthetic_scenes.MOTIONS`.
        speed_levels: number of values of the column speed_level.
        video_frames: number of frames of a video of the tasks "events" and "anticipation".
        missing: fraction of the cells of each label column that are empty, for all tasks but "motion".
        workers: processes; 0 means one per core.
    """

    seed: int = 0
    task: Literal["motion", "attributes", "multi_label", "events", "anticipation"] = "motion"
    train_per_class: int = 8
    validation_per_class: int = 50
    unlabelled: int = 1500
    classes: tuple[str, ...] = (
        *("move_left", "move_right", "move_up", "move_down", "rotate_clockwise"),
        *("rotate_counterclockwise", "zoom_in", "zoom_out"),
    )
    speed_levels: int = 5
    video_frames: int = 64
    missing: float = 0.0
    scene: SceneConfig = field(default_factory=SceneConfig)
    encode: EncodeConfig = field(default_factory=EncodeConfig)
    workers: int = 0

    def __post_init__(self) -> None:
        for name in ("train_per_class", "validation_per_class", "unlabelled", "workers"):
            require(getattr(self, name) >= 0, name, "be 0 or more", getattr(self, name))
        require(len(self.classes) > 0, "classes", "name at least one motion", list(self.classes))
        require(
            len(set(self.classes)) == len(self.classes),
            "classes",
            "name each motion once",
            list(self.classes),
        )
        for name in self.classes:
            require(name in MOTIONS, "classes", f"be among {', '.join(MOTIONS)}", name)
        tasks = ("motion", *TASKS)
        require(self.task in tasks, "task", f"be one of {', '.join(tasks)}", self.task)
        require(self.speed_levels >= 2, "speed_levels", "be at least 2", self.speed_levels)
        enough = self.video_frames >= MIN_EVENT_FRAMES
        require(enough, "video_frames", f"be at least {MIN_EVENT_FRAMES}", self.video_frames)
        require(0 <= self.missing < 1, "missing", "lie in [0, 1)", self.missing)
        if self.task == "motion":
            require(
                self.missing == 0, "missing", "be 0 for task=motion, whose labels are folders", self.missing
            )
        if self.task == "anticipation":
            cue_of(self.classes)
        if self.task == "attributes":
            moves = [name for name in self.classes if is_move(name)]
            require(len(moves) > 0, "classes", "name moves for task=attributes", list(self.classes))

    @property
    def of_task(self) -> TaskConfig:
        """Settings of the videos of a task other than "motion"."""
        is_long = self.task in ("events", "anticipation")
        moves = tuple(name for name in self.classes if is_move(name))
        return TaskConfig(
            task=self.task,
            classes=moves if self.task == "attributes" else self.classes,
            frames=self.video_frames if is_long else self.scene.frames,
            fps=self.encode.fps,
            speed_levels=self.speed_levels,
            scene=self.scene,
        )


@dataclass(frozen=True, kw_only=True)
class SynthVideo:
    """A video: its file relative to OUT, its class, and purpose and sample number of its generator.

    The class is "" for tasks other than "motion".
    """

    file: str
    kind: str
    purpose: str
    number: int


def run_synth(arguments: argparse.Namespace) -> None:
    """Run the command: check the config and OUT, then make the missing videos."""
    settings = load_config(SynthConfig, None, arguments.overrides)
    out = local_out(arguments.out)
    videos = plan_synth(settings)
    _check_out(out, settings)
    missing = [video for video in videos if not (out / video.file).exists()]
    log.info(
        "%d videos of %d classes, %d of them to make in %s",
        *(len(videos), len(settings.classes), len(missing), out),
    )
    if not arguments.dry_run:
        with writing_to(out):
            _make(out, settings, missing)
        source = out if settings.task == "motion" else out / MANIFEST_NAME
        log.info("done: shard them with `kinemae data shard %s OUT`", shlex.quote(str(source)))
    if arguments.json:
        counts = {split: sum(video.file.startswith(f"{split}/") for video in videos) for split in _SPLITS}
        sys.stdout.write(json.dumps({"out": str(out), "videos": counts, "to_make": len(missing)}) + "\n")


def plan_synth(settings: SynthConfig) -> list[SynthVideo]:
    """List all videos of the data set, in a fixed order."""
    if settings.task != "motion":
        return _plan_task(settings)
    per_class = {"train": settings.train_per_class, "validation": settings.validation_per_class}
    videos = [
        SynthVideo(
            file=f"{split}/{kind}/{number:06d}.mp4", kind=kind, purpose=f"synth/{split}/{kind}", number=number
        )
        for split, count in per_class.items()
        for kind in settings.classes
        for number in range(count)
    ]
    for number in range(settings.unlabelled):
        # Each round is a permutation of the classes: all are equally frequent in random order.
        round_number, turn = divmod(number, len(settings.classes))
        chance = generator(settings.seed, purpose="synth/unlabelled/class", sample=round_number)
        kind = settings.classes[int(torch.randperm(len(settings.classes), generator=chance)[turn])]
        file = f"unlabelled/{number:06d}.mp4"
        videos.append(SynthVideo(file=file, kind=kind, purpose="synth/unlabelled", number=number))
    return videos


def _plan_task(settings: SynthConfig) -> list[SynthVideo]:
    classes = len(settings.classes)
    totals = {
        "train": settings.train_per_class * classes,
        "validation": settings.validation_per_class * classes,
        "unlabelled": settings.unlabelled,
    }
    return [
        SynthVideo(
            file=f"{split}/{number:06d}.mp4", kind="", purpose=f"synth/{settings.task}/{split}", number=number
        )
        for split, total in totals.items()
        for number in range(total)
    ]


def task_manifest(settings: SynthConfig, videos: list[SynthVideo]) -> str:
    """The csv table of the videos of a task: path, split and label columns."""
    columns = columns_of(settings.task)
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["path", "split", *columns])
    for video in videos:
        split = video.file.partition("/")[0]
        labels = _scenario(settings, video).labels
        lost = generator(settings.seed, purpose=f"{video.purpose}/missing", sample=video.number)
        is_lost = (torch.rand(len(columns), generator=lost) < settings.missing).tolist()
        cells = [
            "" if split == "unlabelled" or gone else labels[name]
            for name, gone in zip(columns, is_lost, strict=True)
        ]
        table.writerow([video.file, split, *cells])
    return text.getvalue()


def _scenario(settings: SynthConfig, video: SynthVideo) -> Scenario:
    return draw_scenario(
        settings.of_task, generator(settings.seed, purpose=video.purpose, sample=video.number)
    )


def _make(out: Path, settings: SynthConfig, videos: list[SynthVideo]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    for folder in sorted({(out / video.file).parent for video in videos}):
        folder.mkdir(parents=True, exist_ok=True)
    atomic_write_text(out / CONFIG_NAME, json.dumps(_recorded(settings), indent=1))
    work = functools.partial(_make_one, out, settings)
    for _ in progress(imap(work, videos, workers=settings.workers), total=len(videos), what="synth"):
        pass
    if settings.task != "motion":
        atomic_write_text(out / MANIFEST_NAME, task_manifest(settings, plan_synth(settings)))


def _make_one(out: Path, settings: SynthConfig, video: SynthVideo) -> None:
    if settings.task == "motion":
        chance = generator(settings.seed, purpose=video.purpose, sample=video.number)
        frames_THWC = make_scene(video.kind, settings.scene, chance)
    else:
        chance = generator(settings.seed, purpose=f"{video.purpose}/pixels", sample=video.number)
        frames_THWC = render_scenario(_scenario(settings, video), settings.of_task, chance)
    write_video(out / video.file, frames_THWC, settings.encode)


def _check_out(out: Path, settings: SynthConfig) -> None:
    """Reject a folder that holds anything but this data set, finished or not."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not (out / CONFIG_NAME).is_file():
        raise ValueError(f"OUT {out} is not empty and holds no {CONFIG_NAME}; fix: give a new folder")
    theirs = json.loads((out / CONFIG_NAME).read_text(encoding="utf-8"))
    ours = _recorded(settings)
    different = sorted(name for name in ours | theirs if ours.get(name) != theirs.get(name))
    if different:
        raise ValueError(
            f"OUT {out} holds synthetic videos of another config, different in {', '.join(different)}; "
            "fix: give a new folder, or the same config to resume"
        )


def _recorded(settings: SynthConfig) -> dict[str, Any]:
    """The config for synth.json, without keys that do not change the videos."""
    record: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(settings)))
    del record["workers"]
    if settings.task == "motion":
        for name in ("task", "speed_levels", "video_frames", "missing"):
            del record[name]
    return record
