"""`kinemae data synth OUT`: a synthetic data set of H.264 videos whose classes differ only in motion.

    OUT/synth.json                     the config; written first, so that a stopped run can be resumed
    OUT/train/CLASS/000000.mp4         few videos with labels
    OUT/validation/CLASS/000000.mp4
    OUT/unlabelled/000000.mp4          many videos of all classes

Each video is a function of (seed, split, class, number). So the splits share no texture, the result does not
depend on the number of processes, and a rerun with larger counts keeps the existing videos.
"""

import argparse
import dataclasses
import functools
import json
import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from kinemae.data_tools.command import log, writing_to
from kinemae.data_tools.config import load_config, require
from kinemae.data_tools.encoding.encode import EncodeConfig, write_video
from kinemae.data_tools.files import atomic_write_text
from kinemae.data_tools.pool import imap
from kinemae.data_tools.progress import progress
from kinemae.data_tools.randomness import generator
from kinemae.data_tools.synthetic_scenes import MOTIONS, SceneConfig, make_scene

CONFIG_NAME = "synth.json"
_SPLITS = ("train", "validation", "unlabelled")


@dataclass(frozen=True, kw_only=True)
class SynthConfig:
    """Settings of the data set.

    Attributes:
        train_per_class, validation_per_class: labelled videos per class.
        unlabelled: videos without labels, evenly from all classes.
        classes: names from `synthetic_scenes.MOTIONS`.
        workers: processes; 0 means one per core.
    """

    seed: int = 0
    train_per_class: int = 8
    validation_per_class: int = 50
    unlabelled: int = 1500
    classes: tuple[str, ...] = (
        *("move_left", "move_right", "move_up", "move_down", "rotate_clockwise"),
        *("rotate_counterclockwise", "zoom_in", "zoom_out"),
    )
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


@dataclass(frozen=True, kw_only=True)
class SynthVideo:
    """A video: its file relative to OUT, its class, and purpose and sample number of its generator."""

    file: str
    kind: str
    purpose: str
    number: int


def run_synth(arguments: argparse.Namespace) -> None:
    """Run the command: check the config and OUT, then make the missing videos."""
    settings = load_config(SynthConfig, None, arguments.overrides)
    out = Path(arguments.out)
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
        log.info("done: shard them with `kinemae data shard %s OUT`", shlex.quote(str(out)))
    if arguments.json:
        counts = {split: sum(video.file.startswith(f"{split}/") for video in videos) for split in _SPLITS}
        sys.stdout.write(json.dumps({"out": str(out), "videos": counts, "to_make": len(missing)}) + "\n")


def plan_synth(settings: SynthConfig) -> list[SynthVideo]:
    """List all videos of the data set, in a fixed order."""
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


def _make(out: Path, settings: SynthConfig, videos: list[SynthVideo]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    for folder in sorted({(out / video.file).parent for video in videos}):
        folder.mkdir(parents=True, exist_ok=True)
    atomic_write_text(out / CONFIG_NAME, json.dumps(_recorded(settings), indent=1))
    work = functools.partial(_make_one, out, settings)
    for _ in progress(imap(work, videos, workers=settings.workers), total=len(videos), what="synth"):
        pass


def _make_one(out: Path, settings: SynthConfig, video: SynthVideo) -> None:
    chance = generator(settings.seed, purpose=video.purpose, sample=video.number)
    write_video(out / video.file, make_scene(video.kind, settings.scene, chance), settings.encode)


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
    return record
