"""`kinemae data synth OUT`: the embedded data set, H.264 files in which only motion tells the class.

    OUT/synth.json                     the config; written first, so that a stopped run can be continued
    OUT/train/CLASS/000000.mp4         few videos with labels
    OUT/validation/CLASS/000000.mp4
    OUT/unlabelled/000000.mp4          many, of all classes mixed

Each video is a function of (seed, part, class, number) alone: parts share no texture, the number of processes
changes nothing, and asking for more videos keeps those that are there.
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
from kinemae.data_tools.synthetic_scenes import KINDS, SceneConfig, make_scene

CONFIG_NAME = "synth.json"


@dataclass(frozen=True, kw_only=True)
class SynthConfig:
    """What to make.

    Attributes:
        train_per_class, validation_per_class: labelled videos.
        unlabelled: videos without labels, their classes drawn evenly.
        kinds: the classes, of those in `motions.KINDS`.
        workers: processes; 0 means one for each core.
    """

    seed: int = 0
    train_per_class: int = 8
    validation_per_class: int = 50
    unlabelled: int = 1500
    kinds: tuple[str, ...] = (
        "move_left",
        "move_right",
        "move_up",
        "move_down",
        "rotate_clockwise",
        "rotate_counterclockwise",
        "zoom_in",
        "zoom_out",
    )
    scene: SceneConfig = field(default_factory=SceneConfig)
    encode: EncodeConfig = field(default_factory=EncodeConfig)
    workers: int = 0

    def __post_init__(self) -> None:
        for name in ("train_per_class", "validation_per_class", "unlabelled", "workers"):
            require(getattr(self, name) >= 0, name, "be 0 or more", getattr(self, name))
        require(len(self.kinds) > 0, "kinds", "name at least one motion", list(self.kinds))
        require(len(set(self.kinds)) == len(self.kinds), "kinds", "name each motion once", list(self.kinds))
        for kind in self.kinds:
            require(kind in KINDS, "kinds", f"be among {', '.join(KINDS)}", kind)


@dataclass(frozen=True, kw_only=True)
class SynthVideo:
    """One video to make: its file relative to OUT, its class, and its place in the randomness."""

    file: str
    kind: str
    purpose: str
    number: int


def run_synth(arguments: argparse.Namespace) -> None:
    """The command: check the config and OUT, then make what is missing."""
    settings = load_config(SynthConfig, None, arguments.overrides)
    out = Path(arguments.out)
    videos = plan_synth(settings)
    _check_out(out, settings)
    missing = [video for video in videos if not (out / video.file).exists()]
    log.info(
        "%d videos of %d classes, %d of them to make in %s",
        len(videos),
        len(settings.kinds),
        len(missing),
        out,
    )
    if not arguments.dry_run:
        with writing_to(out):
            _make(out, settings, missing)
        log.info("done: shard them with `kinemae data shard %s OUT`", shlex.quote(str(out)))
    if arguments.json:
        counts = {part: sum(video.file.startswith(f"{part}/") for video in videos) for part in _PARTS}
        sys.stdout.write(json.dumps({"out": str(out), "videos": counts, "to_make": len(missing)}) + "\n")


_PARTS = ("train", "validation", "unlabelled")


def plan_synth(settings: SynthConfig) -> list[SynthVideo]:
    """Every video of the data set, in a fixed order."""
    per_class = {"train": settings.train_per_class, "validation": settings.validation_per_class}
    videos = [
        SynthVideo(
            file=f"{part}/{kind}/{number:06d}.mp4", kind=kind, purpose=f"synth/{part}/{kind}", number=number
        )
        for part, count in per_class.items()
        for kind in settings.kinds
        for number in range(count)
    ]
    for number in range(settings.unlabelled):
        # The classes come in shuffled rounds, so that all are equally frequent and the number tells none.
        round_number, turn = divmod(number, len(settings.kinds))
        chance = generator(settings.seed, purpose="synth/unlabelled/class", sample=round_number)
        kind = settings.kinds[int(torch.randperm(len(settings.kinds), generator=chance)[turn])]
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
    """Refuse to mix with what is there, unless it is this very data set, perhaps unfinished."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not (out / CONFIG_NAME).is_file():
        raise ValueError(f"OUT {out} is not empty and holds no {CONFIG_NAME}: give a new folder")
    there = json.loads((out / CONFIG_NAME).read_text(encoding="utf-8"))
    wanted = _recorded(settings)
    different = sorted(name for name in wanted | there if wanted.get(name) != there.get(name))
    if different:
        raise ValueError(
            f"OUT {out} holds synthetic videos of another config, different in {', '.join(different)}: "
            "give a new folder, or the same config to continue"
        )


def _recorded(settings: SynthConfig) -> dict[str, Any]:
    """The config as it stands in synth.json, without what cannot change a byte of the videos."""
    record: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(settings)))
    del record["workers"]
    return record
