"""`kinemae pretrain visualize MODEL SOURCE OUT [a.b=c]`: pictures of a trained model on videos.

OUT/index.html              a page with all pictures, in one file
OUT/VIDEO/VIEW.mp4          the whole video, window by window, with a time line
OUT/VIDEO/VIEW.gif, .png    some windows, each in a row
OUT/index/                  index of plain video files
"""

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path

from kinemae.data_tools.command import log, writing_to
from kinemae.data_tools.config import load_config
from kinemae.data_tools.report.render import render, write_page
from kinemae.data_tools.stream.frame_sampling import ClipConfig
from kinemae.pretrain.pruning.base import Pruning
from kinemae.pretrain.runtime.processes import find_processes
from kinemae.pretrain.visualize.choose_views import choose_views
from kinemae.pretrain.visualize.draw import draw_views
from kinemae.pretrain.visualize.open_model import (
    clip_of,
    open_pretrained_model,
    reconstruction_of,
    subject_of,
)
from kinemae.pretrain.visualize.page import video_content
from kinemae.pretrain.visualize.settings import VisualizeConfig
from kinemae.pretrain.visualize.videos import log_if_short, open_videos
from kinemae.pretrain.visualize.views import Subject, View

PAGE = "index.html"
TEMPLATE = Path(__file__).with_name("page.html")
_NO_POOLING = "only a fine-tuned model with an attentive head has it, see kinemae finetune visualize"


def run_visualize(arguments: argparse.Namespace) -> None:
    """Run the command."""
    settings = load_config(VisualizeConfig, None, arguments.overrides)
    model = open_pretrained_model(Path(arguments.model))
    device = find_processes(settings.device).device
    reconstruction = reconstruction_of(model, masking=settings.masking, seed=settings.seed, device=device)
    visualize(
        subject_of(model.encoder, model.description, device),
        clip_of(model.description, stride=settings.stride, fps=settings.fps),
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
    out = Path(arguments.out)
    with writing_to(out):
        out.mkdir(parents=True, exist_ok=True)
    videos = open_videos(
        arguments.source,
        clip,
        keys=settings.keys,
        samples=settings.samples,
        seed=settings.seed,
        folder=out / "index",
    )
    content, files = [], []
    for video in videos:
        log_if_short(video)
        views = {name: build(video.sample.duration_s / 2) for name, build in builds.items()}
        shown, folder = video.evenly(settings.windows), out / video.folder_name
        drawn = draw_views(video, subject, views, folder, shown=shown)
        content.append(video_content(video, shown, drawn))
        files += [str(path) for each in drawn for path in (each.mp4, each.gif, each.png)]
        log.info("%s: %d views in %s", video.sample.name, len(drawn), folder)
    names = {"model": str(arguments.model), "source": str(arguments.source)}
    page = out / PAGE
    write_page(page, render(TEMPLATE, {**names, "videos": content, "absent": absent}))
    log.info("the page is %s", page)
    if arguments.json:
        found = {"page": str(page), "files": files, "not_drawn": absent}
        sys.stdout.write(json.dumps(found, ensure_ascii=False) + "\n")
