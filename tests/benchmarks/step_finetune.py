"""Benchmark run-length pruning and merging in fine-tuning, on real clips; used by `step.py`."""

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from kinemae.data_tools.components import Component
from kinemae.data_tools.randomness import ClipRandom
from kinemae.data_tools.stream.batch import ClipBatch
from kinemae.data_tools.stream.decode import probe
from kinemae.data_tools.stream.views import crop_views, evaluation_views
from kinemae.data_tools.stream.yuv_planes import yuv_frames_at
from kinemae.data_tools.stream.yuv_to_rgb import YuvClips
from kinemae.finetune.heads.base import build_head
from kinemae.finetune.task_model import TaskModel
from kinemae.finetune.token_reduction import TokenReduction
from kinemae.pretrain.model.encoder import Encoder
from kinemae.pretrain.model.sizes import SIZES
from kinemae.pretrain.model.tokens import TokenGrid
from tests.benchmarks.timing import Step, min_seconds
from tests.task_models import classification

REPO = Path(__file__).resolve().parents[2]
REAL = REPO.parent / "shared/videos/surveillance"
CLASSES = 400
MERGED = 65
"""Tokens merged per block, ToMe's value for video of 1568 tokens (arXiv 2210.09461)."""

ALL = "all tokens"
VARIANTS = {
    ALL: TokenReduction(),
    "run-length, adaptive (packed)": TokenReduction(pruning=Component(name="run_length")),
    "run-length, keep=0.5": TokenReduction(pruning=Component(name="run_length", args={"keep": 0.5})),
    f"merging, {MERGED} per block": TokenReduction(merge_per_block=MERGED),
}


def print_finetuning(*, size: str, shape: tuple[int, ...], stride: int, repeats: int) -> None:
    """Measure and print.

    Args:
        shape: (B, C, T, H, W) of the clips; B of them are timed, four times as many are scored.
        stride: video frames from one of the clip's to the next.
    """
    clips, _, frames, pixels, _ = shape
    name, clip_BCTHW = load_clips(4 * clips, frames=frames, size=pixels, stride=stride)
    models = {
        name: _classifier(size, frames, pixels, token_reduction) for name, token_reduction in VARIANTS.items()
    }
    scored = {name: _scored(model.eval(), clip_BCTHW) for name, model in models.items()}
    timed = slice(None, None, 4)
    batch_BCTHW = clip_BCTHW[timed]
    times = min_seconds({name: _step(model.train(), batch_BCTHW) for name, model in models.items()}, repeats)
    print(f"{size}, fine-tuning, {name} of {frames} frames {stride} apart, {len(clip_BCTHW)} scored")
    plain_BY = scored[ALL].logits_BY
    spread = _size(plain_BY - plain_BY.mean(dim=0))
    for name, (logits_BY, left_B) in scored.items():
        difference = _size(logits_BY - plain_BY)
        print(
            f"{name:34}{1000 * times[name] / clips:9.0f} ms per clip   "
            f"ratio {times[ALL] / times[name]:5.2f}   "
            f"tokens kept {100 * left_B[timed].mean():5.1f} % ({100 * left_B.mean():5.1f} % of all scored)   "
            f"logits change by {100 * difference / _size(plain_BY):5.1f} % "
            f"of their norm, {100 * difference / spread:5.1f} % of their spread"
        )


def load_clips(count: int, *, frames: int, size: int, stride: int) -> tuple[str, Tensor]:
    """Read clips from the middle of real videos, or of synthetic ones; return their name too."""
    if REAL.is_dir():
        return "real clips", _read(sorted(REAL.rglob("*.mp4")), count, frames, size, stride)
    with tempfile.TemporaryDirectory() as folder:
        counts = ["train_per_class=4", "validation_per_class=1", "unlabelled=1"]
        command = [sys.executable, "-m", "kinemae", "data", "synth", folder, *counts]
        subprocess.run(command, cwd=REPO, check=True, capture_output=True)
        return "synthetic clips", _read(sorted(Path(folder).rglob("*.mp4")), count, frames, size, stride)


def _read(files: list[Path], count: int, frames: int, size: int, stride: int) -> Tensor:
    clips = []
    for file in files[:: max(1, len(files) // count)][:count]:
        video = probe(file)
        step_s = stride * video.duration_s / video.frames
        start_s = max(0.0, (video.duration_s - frames * step_s) / 2)
        timestamps_s = [min(start_s + i * step_s, video.duration_s * 0.999) for i in range(frames)]
        planes = YuvClips.empty(1, frames, size)
        crop_views(
            yuv_frames_at(file.read_bytes(), timestamps_s), lambda h, w: evaluation_views(h, w, 1), planes
        )
        clips.append(planes.rgb())
    return torch.cat(clips)


def _classifier(size: str, frames: int, pixels: int, token_reduction: TokenReduction) -> TaskModel:
    """Build a model; every variant has the same random weights."""
    torch.manual_seed(0)
    shape = SIZES[size].encoder
    encoder = Encoder(shape, TokenGrid.of(frames, pixels, shape.patch))
    head = build_head(Component(name="linear", args={"init_std": 0.02}), width=shape.width, outputs=CLASSES)
    pruning = token_reduction.build_pruning(shape)
    return TaskModel(token_reduction.apply(encoder, pruning), head, classification(CLASSES), pruning=pruning)


def _step(model: TaskModel, clip_BCTHW: Tensor) -> Step:
    count = len(clip_BCTHW)
    batch = ClipBatch(
        pixels=clip_BCTHW,
        clip_index_B=torch.arange(count),
        label_B=torch.arange(count) % CLASSES,
        targets={"label": torch.arange(count) % CLASSES},
        weight_B=torch.ones(count),
    )
    draws = ClipRandom(0, batch.clip_index_B)
    return Step(model, lambda: model(batch, draws)["loss"].mean())


class Scored(NamedTuple):
    """Logits of clips, and the fraction of tokens of each clip that reaches the MLP of the last block."""

    logits_BY: Tensor
    left_B: Tensor


@torch.inference_mode()
def _scored(model: TaskModel, clip_BCTHW: Tensor) -> Scored:
    features = [model.features(clip_1CTHW) for clip_1CTHW in clip_BCTHW.split(1)]
    logits = [model.head(part, None) for part in features]
    tokens = model.encoder.grid.tokens
    left_B = torch.cat([part.kept_B for part in features])
    for _ in model.encoder.blocks:
        left_B = left_B - (left_B // 2).clamp(max=model.encoder.merge_per_block)
    return Scored(torch.cat(logits), left_B / tokens)


def _size(values: Tensor) -> Tensor:
    """Root mean square."""
    return values.square().mean().sqrt()
