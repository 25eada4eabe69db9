"""Prediction of whole samples by a fine-tuned model: the one path of validation, evaluation and prediction.

A sample's views are evenly spaced clips times crops, or clips that slide over the whole video. Samples are
divided into groups of consecutive ones whose views fill a forward pass. The groups are dealt out to the
processes, and no forward pass has views of two groups. So each forward pass has the same clips on any number
of processes, and the predictions are equal to the last digit.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from kinemae.data_tools.command import log
from kinemae.data_tools.index import ShardIndex
from kinemae.data_tools.progress import progress
from kinemae.data_tools.stream.batch import SkippedClip
from kinemae.data_tools.stream.frame_sampling import ClipConfig, sliding_clip_count
from kinemae.data_tools.stream.loader import EvaluationItem, evaluation_loader
from kinemae.data_tools.stream.yuv_to_rgb import join, on_device
from kinemae.finetune.adapt.lora import merged
from kinemae.finetune.build import clip_config
from kinemae.finetune.config import EvaluateConfig, FinetuneConfig
from kinemae.finetune.model_file import FinetunedModel
from kinemae.finetune.task_model import TaskModel
from kinemae.finetune.tasks.base import SamplePrediction, Targets, Task
from kinemae.pretrain.model.blocks import as_in_evaluation
from kinemae.pretrain.runtime.processes import Processes
from kinemae.pretrain.runtime.settings import BatchConfig, EngineConfig, precision_on


class ForwardConfig(Protocol):
    """Settings of forward passes; `engine` gives the precision."""

    @property
    def batch(self) -> BatchConfig: ...

    @property
    def engine(self) -> EngineConfig: ...


class Output(NamedTuple):
    """An item with the model's output for its views, on the CPU; None for an item that is skipped."""

    item: EvaluationItem
    output_V: Tensor | None
    kept_V: Tensor | None


def predict_samples(
    finetuned: FinetunedModel,
    index: ShardIndex,
    config: FinetuneConfig,
    processes: Processes,
    *,
    samples: Sequence[int] | None = None,
    on_progress: Callable[[], None] | None = None,
) -> list[SamplePrediction]:
    """Collective. Predict samples with the views of `config.evaluate`, divided among the processes.

    Args:
        config: `data.num_workers` is the number of loader workers of this process.
        samples: positions in the index; None: all.
        on_progress: called regularly, as often on every process; None: log the progress.

    Returns:
        The predictions ordered by position, the same on every process.

    Raises:
        StorageUnavailable: a storage did not respond for data.outage_s.
    """
    positions = range(len(index)) if samples is None else samples
    clip = clip_config(config, finetuned.description)
    limit = config.batch.fixed_clips
    groups = sample_groups(index, positions, clip=clip, views=config.evaluate, limit=limit)
    own_groups = groups[processes.rank :: processes.world]
    items = _items(index, own_groups, clip, config)
    targets = finetuned.model.task.read(index, key="data")
    predicted = _predict(finetuned.model, items, own_groups, targets, config)
    if on_progress is None and processes.is_first:
        predicted = progress(predicted, total=sum(map(len, own_groups)), what="scoring")
    own: list[SamplePrediction] = []
    with merged(finetuned.model):
        for number in range(math.ceil(len(groups) / processes.world)):  # as often on every process
            own += [next(predicted) for _ in own_groups[number : number + 1] for _ in own_groups[number]]
            if on_progress is not None:
                on_progress()
    gathered = {each.position: each for part in processes.all_gather_object(own) for each in part}
    return [gathered[position] for position in sorted(gathered)]


def sample_groups(
    index: ShardIndex, positions: Sequence[int], *, clip: ClipConfig, views: EvaluateConfig, limit: int
) -> list[list[int]]:
    """Divide samples into groups with at least `limit` views, see `groups_of_views`."""
    counts = (view_count(index, position, clip=clip, views=views) for position in positions)
    return groups_of_views(positions, counts, limit)


def groups_of_views(positions: Iterable[int], counts: Iterable[int], limit: int) -> list[list[int]]:
    """Divide samples into groups of consecutive ones with at least `limit` views; the last may have fewer.

    Args:
        counts: number of views of each sample.
    """
    groups: list[list[int]] = []
    missing = 0
    for position, count in zip(positions, counts, strict=True):
        if missing <= 0:
            groups.append([])
            missing = limit
        groups[-1].append(position)
        missing -= count
    return groups


def view_count(index: ShardIndex, position: int, *, clip: ClipConfig, views: EvaluateConfig) -> int:
    """Number of views of a sample: clips times crops."""
    clips = views.clips
    if not isinstance(clips, int):
        clips = sliding_clip_count(index.sample(position), clip, clips)
    return clips * views.spatial_crops


def _items(
    index: ShardIndex, groups: Sequence[Sequence[int]], clip: ClipConfig, config: FinetuneConfig
) -> Iterator[EvaluationItem]:
    """Read the views of the samples of all groups, in their order."""
    return evaluation_loader(
        index,
        clip=clip,
        temporal_clips=config.evaluate.clips,
        spatial_crops=config.evaluate.spatial_crops,
        rank=0,
        world=1,
        workers=config.data.num_workers,
        samples=[position for group in groups for position in group],
        timeout_s=config.data.timeout_s,
        read_ahead=config.data.read_ahead,
    )


def _predict(
    model: TaskModel,
    items: Iterable[EvaluationItem],
    groups: Iterable[Sequence[int]],
    targets: Targets,
    config: FinetuneConfig,
) -> Iterator[SamplePrediction]:
    """Yield one prediction per sample, in the order of the groups.

    Args:
        items: of the samples of these groups; a long video has several.
    """
    device = next(model.parameters()).device
    model.eval()
    iterator = iter(items)
    for group in groups:
        outputs = compute_outputs(model, _of_samples(iterator, len(group)), config, device)
        for _, parts in groupby(outputs, key=lambda each: each.item.position):
            yield _combine(model.task, list(parts), targets, device)


def _of_samples(items: Iterator[EvaluationItem], count: int) -> Iterator[EvaluationItem]:
    """Take all items of the next `count` samples."""
    while count:
        item = next(items)
        count -= item.part == item.parts - 1
        yield item


def compute_outputs(
    model: TaskModel, items: Iterable[EvaluationItem], config: ForwardConfig, device: torch.device
) -> Iterator[Output]:
    """Compute the outputs for the views of items, as soon as these fill a forward pass."""
    pending: list[EvaluationItem] = []
    for item in items:
        pending.append(item)
        if sum(len(each.pixels) for each in pending) >= config.batch.fixed_clips:
            yield from _forward(model, pending, config, device)
            pending = []
    yield from _forward(model, pending, config, device)


def _forward(
    model: TaskModel, items: Sequence[EvaluationItem], config: ForwardConfig, device: torch.device
) -> list[Output]:
    """Run the model on the views of items. A forward pass has at most `batch.clips_per_device` views."""
    views = [item.pixels for item in items if item.skipped is None]
    if not views:
        return [Output(item, None, None) for item in items]
    joined, limit = join(views), config.batch.fixed_clips
    is_bf16 = precision_on(config.engine, device) == "bf16"
    outputs, kept = [], []
    # Not torch.inference_mode: the model may be trained further, and its buffers must stay ordinary.
    autocast = torch.autocast(device.type, dtype=torch.bfloat16, enabled=is_bf16)
    # Uncompiled, since a forward pass may have any number of views up to the limit.
    with torch.no_grad(), as_in_evaluation(model), autocast:
        for begin in range(0, len(joined), limit):
            output_B, kept_B = model.output(on_device(joined[begin : begin + limit], device))
            outputs.append(output_B)
            kept.append(kept_B)
    lengths = [len(pixels) for pixels in views]
    split = zip(*(torch.cat(parts).float().cpu().split(lengths) for parts in (outputs, kept)), strict=True)
    return [
        _finite_output(item, *next(split)) if item.skipped is None else Output(item, None, None)
        for item in items
    ]


def _finite_output(item: EvaluationItem, output_V: Tensor, kept_V: Tensor) -> Output:
    """An item with its output, or as one that failed: NaN would be predicted as the first class."""
    if output_V.isfinite().all():
        return Output(item, output_V, kept_V)
    skipped = SkippedClip(key=item.key, reason="the model's output for it is not finite")
    return Output(replace(item, skipped=skipped), None, None)


def _combine(task: Task, parts: Sequence[Output], targets: Targets, device: torch.device) -> SamplePrediction:
    """Combine the outputs for all views of a sample, which has failed if one of its items has."""
    first = parts[0].item
    sample: dict[str, Any] = {"position": first.position, "key": first.key}
    reason = next((part.item.skipped.reason for part in parts if part.item.skipped is not None), None)
    if reason is not None:
        log.warning("%s is not scored: %s", first.key, reason)
        return SamplePrediction(**sample, values=None, error=reason)
    output_V = torch.cat([part.output_V for part in parts if part.output_V is not None])
    kept_V = torch.cat([part.kept_V for part in parts if part.kept_V is not None])
    time_VT = torch.cat([part.item.time_VT for part in parts])
    return SamplePrediction(
        **sample,
        values=task.combine(task.predict(output_V), time_VT),
        loss=_loss(task, output_V, targets, first.position, time_VT, device),
        tokens=float(kept_V.mean()),
        views=len(output_V),
    )


def _loss(
    task: Task, output_V: Tensor, targets: Targets, position: int, time_VT: Tensor, device: torch.device
) -> float:
    """Mean loss of a sample's views, as in training."""
    of_views = targets.of_clips(torch.full((len(output_V),), position), time_VT)
    loss_V = task.loss(output_V.to(device), {name: target.to(device) for name, target in of_views.items()})
    return loss_V.double().mean().item()
