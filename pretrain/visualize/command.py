"""`kinemae pretrain visualize MODEL SOURCE OUT [a.b=c]`: pictures of a trained model on videos.

OUT/index.html              a page with all pictures, in one file
OUT/VIDEO/VIEW.mp4          the whole video, window by window, with a time line
OUT/VIDEO/VIEW.gif, .png    some windows, each in a row
OUT/index/                  index of plain video files
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from kinemae.data_tools.command import DataError, log, writing_to
from kinemae.data_tools.config import load_config
from kinemae.data_tools.report.render import render, write_page
from kinemae.data_tools.storage.location import local_out
from kinemae.data_tools.stream.container import BadVideo
from kinemae.data_tools.stream.frame_sampling import ClipConfig, clip_with
from kinemae.pretrain.pruning.base import Pruning
from kinemae.pretrain.runtime.processes import find_processes
from kinemae.pretrain.visualize.choose_views import Build, choose_views
from kinemae.pretrain.visualize.draw import Drawn, draw_views
from kinemae.pretrain.visualize.open_model import (
    open_pretrained_model,
    reconstruction_of,
    subject_of,
)
from kinemae.pretrain.visualize.page import video_content
from kinemae.pretrain.visualize.settings import VisualizeConfig
from kinemae.pretrain.visualize.videos import Video, log_if_short, open_videos
from kinemae.pretrain.visualize.views import Subject, View

PAGE = "index.html"
TEMPLATE = Path(__file__).with_name("page.html")
_NO_POOLING = "only a fine-tuned model with an attentive head has it, see kinemae finetune visualize"


def run_visualize(arguments: argparse.Namespace) -> None:
    """Run the command."""
    settings = load_config(VisualizeConfig, None, arguments.overrides)
    model = open_pretrained_model(Path(arguments.model))
    processes = find_processes(settings.device)
    if not processes.is_first:
        return  # one process draws
    device = processes.device
    reconstruction = reconstruction_of(model, masking=settings.masking, seed=settings.seed, device=device)
    visualize(
        subject_of(model.encoder, model.description, device),
        clip_with(model.description.clip, stride=settings.stride, fps=settings.fps),
        settings,
        arguments,
        own={"reconstruction": reconstruction, "pooling": _NO_POOLING},
        own_pruning=model.pruning,
    )


def visualize(
    subject: Subject,
    clip: ClipConfig,
    settings: VisualizeConfig,
    arguments: argparse.Namespace,
    *,
    own: Mapping[str, View | str],
    own_pruning: Pruning | None,
) -> None:
    """Draw all pictures of a model and write the page.

    Args:
        arguments: model, source, out and json.
        own, own_pruning: see `choose_views`.
    """
    builds, absent = choose_views(subject, settings, own=own, own_pruning=own_pruning)
    out = local_out(arguments.out)
    with writing_to(out):
        out.mkdir(parents=True, exist_ok=True)
    videos, failed = open_videos(
        arguments.source,
        clip,
        keys=settings.keys,
        samples=settings.samples,
        seed=settings.seed,
        out=out,
    )
    drawn, undrawn = _draw_videos(videos, subject, builds, out, windows=settings.windows)
    unreadable = failed | undrawn
    content = {
        "model": str(arguments.model),
        "source": str(arguments.source),
        "videos": [video_content(*each) for each in drawn],
        "absent": absent,
        "unreadable": unreadable,
    }
    page = out / PAGE
    write_page(page, render(TEMPLATE, content))
    log.info("the page is %s", page)
    if arguments.json:
        files = [str(path) for _, _, views in drawn for each in views for path in each.files]
        found = {"page": str(page), "files": files, "not_drawn": absent, "unreadable": unreadable}
        sys.stdout.write(json.dumps(found, ensure_ascii=False) + "\n")


def _draw_videos(
    videos: Sequence[Video], subject: Subject, builds: Mapping[str, Build], out: Path, *, windows: int
) -> tuple[list[tuple[Video, list[int], list[Drawn]]], dict[str, str]]:
    """Draw each video: the shown windows and the drawn views. An unreadable video has a reason instead.

    Raises:
        DataError: no video can be read.
    """
    done: list[tuple[Video, list[int], list[Drawn]]] = []
    unreadable: dict[str, str] = {}
    for video in videos:
        log_if_short(video)
        views = {name: build(video.sample.duration_s / 2) for name, build in builds.items()}
        shown, folder = video.evenly(windows), out / video.folder_name
        try:
            done.append((video, shown, draw_views(video, subject, views, folder, shown=shown)))
            log.info("%s: %d views in %s", video.sample.name, len(views), folder)
        except BadVideo as error:
            log.warning("%s cannot be read: %s", video.sample.name, error)
            unreadable[video.sample.name] = str(error)
    if not done:
        name, reason = next(iter(unreadable.items()))
        raise DataError(f"{name}: expected a readable video, got an error: {reason}; fix: give another one")
    return done, unreadable
