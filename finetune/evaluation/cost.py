"""Cost of a fine-tuned model: parameters, and FLOPs of a view in evaluation and in training."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from kinemae.data_tools.index import ShardIndex
from kinemae.data_tools.stream.evaluation_clips import EvaluationVideos
from kinemae.data_tools.stream.frame_sampling import ClipConfig
from kinemae.data_tools.stream.yuv_to_rgb import on_device
from kinemae.finetune.task_model import TaskModel
from kinemae.pretrain.model.flops import on_meta_device

_EXAMINED = 4  # videos, if the number of kept tokens depends on the video


def model_cost(model: TaskModel, index: ShardIndex, clip: ClipConfig) -> dict[str, float | None]:
    """Return "parameters" and "gflops_per_view", the FLOPs of a forward pass divided by 1e9.

    A multiplication and an addition count as two; see `kinemae.pretrain.model.flops`. With a pruning that
    keeps a different number of tokens per clip, the mean over the first readable videos; None without any.
    """
    parameters = sum(weight.numel() for weight in model.parameters())
    flops = view_flops(model, index, clip)
    return {"parameters": parameters, "gflops_per_view": None if flops is None else flops / 1e9}


def view_flops(model: TaskModel, index: ShardIndex, clip: ClipConfig) -> float | None:
    """Count the FLOPs of the forward pass of one view, in evaluation."""
    depends_on_video = model.pruning.keep is None
    if not depends_on_video:
        black_BCTHW = _black_clips(clip)
        try:
            return _count(on_meta_device(model), black_BCTHW.to("meta")) / len(black_BCTHW)
        except (NotImplementedError, RuntimeError):  # an operation needs values
            return _count(model, black_BCTHW.to(next(model.parameters()).device)) / len(black_BCTHW)
    clip_BCTHW = _first_clips(index, clip, next(model.parameters()).device)
    return None if clip_BCTHW is None else _count(model, clip_BCTHW) / len(clip_BCTHW)


def training_flops(model: TaskModel, clip: ClipConfig) -> float | None:
    """Count the FLOPs of the forward and backward pass of one view; frozen weights have no gradient.

    None if the number of tokens depends on the video, or if an operation needs values.
    """
    if model.pruning.keep is None:
        return None
    meta, black_BCTHW = trainable_on_meta(model).eval(), _black_clips(clip)
    try:
        with torch.enable_grad(), FlopCounterMode(display=False) as counter:
            output, _ = meta.output(black_BCTHW.to("meta"))
            output.sum().backward()
    except (NotImplementedError, RuntimeError):
        return None
    return counter.get_total_flops() / len(black_BCTHW)


def trainable_on_meta(model: TaskModel) -> TaskModel:
    """A copy of a model on the meta device, with the same trained weights."""
    copied = on_meta_device(model)
    for of_copy, weight in zip(copied.parameters(), model.parameters(), strict=True):
        of_copy.requires_grad_(weight.requires_grad)
    return copied


def _black_clips(clip: ClipConfig) -> Tensor:
    """Two clips: one alone is a special case for some operations."""
    return torch.zeros(2, 3, clip.frames, clip.size, clip.size, dtype=torch.uint8)


def _first_clips(index: ShardIndex, clip: ClipConfig, device: torch.device) -> Tensor | None:
    positions: Sequence[int] = range(min(_EXAMINED, len(index)))
    videos = EvaluationVideos(index, positions, clip=clip, temporal_clips=1, spatial_crops=1)
    items = [videos.read(i, quarantined={}, on_sample=lambda key: None) for i in positions]
    readable = [on_device(item.pixels, device) for item in items if item.skipped is None]
    return torch.cat(readable) if readable else None


def _count(model: TaskModel, clip_BCTHW: Tensor) -> int:
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model.output(clip_BCTHW)
    finally:
        model.train(was_training)
    return counter.get_total_flops()
