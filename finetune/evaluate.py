"""Multi-view evaluation of a fine-tuned model: score several clips and crops of each validation video."""

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kinemae.data_tools.command import CheckpointError, DataError, log
from kinemae.data_tools.config import all_keys, component_keys, load_config
from kinemae.data_tools.config_hints import is_key, unknown_key
from kinemae.data_tools.files import atomic_write_text
from kinemae.data_tools.index import ShardIndex
from kinemae.data_tools.progress import progress
from kinemae.data_tools.stream.loader import ClipConfig, EvaluationItem, evaluation_loader
from kinemae.data_tools.stream.yuv_to_rgb import Pixels, join, on_device
from kinemae.finetune.adapt.lora import merged
from kinemae.finetune.build import clip_config
from kinemae.finetune.compare import RESULT_NAME
from kinemae.finetune.config import FinetuneConfig
from kinemae.finetune.data_sets import DataSet, open_scored
from kinemae.finetune.model_file import DESCRIPTION, FinetunedModel, load_model
from kinemae.finetune.scored_model import load_scored_model
from kinemae.finetune.task_model import TaskModel
from kinemae.finetune.tasks.base import SamplePrediction, Targets, Task
from kinemae.pretrain.runtime.processes import (
    Processes,
    destroy_process_group,
    find_processes,
    init_process_group,
    share_cores,
)
from kinemae.pretrain.runtime.settings import precision_on

# Prefixes of the keys that `evaluate` accepts; the trained model determines all other keys.
_OVERRIDABLE = (
    *("evaluate.", "pruning", "merge.", "data.validation", "data.test", "data.num_workers", "data.timeout_s"),
    *("data.outage_s", "data.cache_dir", "data.cache_gb", "batch.clips_per_device", "engine."),
    "clip.short_video",
)


def run_evaluate(arguments: argparse.Namespace) -> None:
    """Run `kinemae finetune evaluate RUN [a.b=c]`; RUN may also be the folder of an imported model."""
    run_dir = Path(arguments.run_dir)
    is_imported = (run_dir / DESCRIPTION).is_file()
    config = _load_run_config(run_dir, arguments.overrides, is_imported=is_imported)
    selected: dict[str, Any] = {}
    if is_imported:
        finetuned = load_model(run_dir, token_reduction=config.token_reduction)
    else:
        finetuned, selected = load_scored_model(config, run_dir)
    data = open_scored(config, finetuned.model.task, clip_config(config, finetuned.description))
    processes = find_processes(config.engine.device)
    if arguments.dry_run:
        views = f"{config.evaluate.temporal_clips} x {config.evaluate.spatial_crops} views each"
        log.info("would score %d videos of %s with %s", len(data.index), data.key, views)
        return
    finetuned.model.to(processes.device)
    try:
        init_process_group(processes)
        result = evaluate(finetuned, data, config, processes) | selected
        if is_imported:  # it was not trained here
            result["run"] |= {"lr": 0.0, "epochs": 0}
        write_result(result, run_dir, processes, as_json=arguments.json)
    finally:
        destroy_process_group()


def evaluate(
    finetuned: FinetunedModel, data: DataSet, config: FinetuneConfig, processes: Processes
) -> dict[str, Any]:
    """Score a model on every video of a data set, divided among the processes; all return the same result.

    Raises:
        DataError: no video could be read.
        StorageUnavailable: a storage did not respond for data.outage_s.
    """
    views = config.evaluate
    workers = share_cores(processes, workers=config.data.num_workers, cpu_threads=config.engine.cpu_threads)
    config = replace(config, data=replace(config.data, num_workers=workers))
    predictions = predict_samples(finetuned, data.index, config, processes)
    return {
        **score_samples(finetuned.model.task, predictions, data.index, key=data.key),
        "views": {
            "temporal_clips": views.temporal_clips,
            "spatial_crops": views.spatial_crops,
            "total": views.temporal_clips * views.spatial_crops,
        },
        "tokens": {"grid": finetuned.model.grid_tokens, "kept": _mean_tokens(predictions)},
        "data": {config.scored_data: data.place, "fingerprint": data.index.fingerprint},
        "run": {
            "encoder": config.encoder,
            "weights": "random" if config.from_scratch else "pretrained",
            "adapt": config.adapt.method,
            "head": config.head.name,
            **asdict(config.token_reduction),
            "lr": config.optim.lr,
            "epochs": config.epochs,
            "seed": config.seed,
        },
    }


def deal_groups(positions: Sequence[int], *, size: int, rank: int, world: int) -> list[int]:
    """Return the positions of a process: every `world`-th group of `size` consecutive ones.

    Forward passes then have the same composition on any number of processes, hence the same results to the
    last digit.
    """
    groups = [positions[begin : begin + size] for begin in range(0, len(positions), size)]
    return [position for group in groups[rank::world] for position in group]


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
    views, rank, world = config.evaluate, processes.rank, processes.world
    positions = range(len(index)) if samples is None else samples
    size = math.ceil(config.batch.clips_per_device / (views.temporal_clips * views.spatial_crops))
    own_positions = deal_groups(positions, size=size, rank=rank, world=world)
    items = _views(index, own_positions, config, clip_config(config, finetuned.description))
    if on_progress is None and processes.is_first:
        items = progress(items, total=len(own_positions), what="scoring")
    own: list[SamplePrediction] = []
    with merged(finetuned.model):
        predicted = _predict(finetuned.model, batched(items, size), index, config, processes.device)
        for _ in range(0, len(positions), size * world):  # as often on every process
            own += islice(predicted, size)
            if on_progress is not None:
                on_progress()
    gathered = {each.position: each for part in processes.all_gather_object(own) for each in part}
    return [gathered[position] for position in sorted(gathered)]


def _views(
    index: ShardIndex, positions: Sequence[int], config: FinetuneConfig, clip: ClipConfig
) -> Iterator[EvaluationItem]:
    """The views of the samples at some positions."""
    return evaluation_loader(
        index,
        clip=clip,
        temporal_clips=config.evaluate.temporal_clips,
        spatial_crops=config.evaluate.spatial_crops,
        rank=0,
        world=1,
        workers=config.data.num_workers,
        samples=positions,
        timeout_s=config.data.timeout_s,
    )


def write_result(result: dict[str, Any], run_dir: Path, processes: Processes, *, as_json: bool) -> None:
    """Write `result.json`, log the score and optionally print the result; does nothing on ranks above 0."""
    if not processes.is_first:
        return
    # One key per line: json's own indentation would put every number of the confusion matrix on a line.
    lines = [f" {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}" for key, value in result.items()]
    atomic_write_text(run_dir / RESULT_NAME, "{\n" + ",\n".join(lines) + "\n}\n")
    metric = result["metric"]
    shown = f"{metric} {result[metric]:.4g}"
    if metric == "top1":
        low, high = result["top1_ci95"]
        values = (100 * value for value in (result["top1"], low, high, result["top5"]))
        shown = "top-1 {:.1f} % (95 % interval {:.1f} - {:.1f}), top-5 {:.1f} %".format(*values)
    counts = (result["videos"], result["views"]["total"])
    log.info("%s, %d videos, %d views each: %s", shown, *counts, run_dir / RESULT_NAME)
    if as_json:
        sys.stdout.write(json.dumps(result, ensure_ascii=False) + "\n")


def _predict(
    model: TaskModel,
    groups: Iterable[Sequence[EvaluationItem]],
    index: ShardIndex,
    config: FinetuneConfig,
    device: torch.device,
) -> Iterator[SamplePrediction]:
    """Yield one prediction per item, in the items' order. A forward pass has views of one group only."""
    targets = model.task.read(index, key="data")
    limit = config.batch.clips_per_device
    is_bf16 = precision_on(config.engine, device) == "bf16"
    model.eval()
    for group in groups:
        views = [item.pixels for item in group if item.skipped is None]
        # Not torch.inference_mode: the model may be trained further, and its buffers must stay ordinary.
        with torch.no_grad(), torch.autocast(device.type, dtype=torch.bfloat16, enabled=is_bf16):
            outputs = iter(_forward(model, views, limit=limit, device=device))
        for item in group:
            sample: dict[str, Any] = {"position": item.position, "key": item.key}
            if item.skipped is not None:
                log.warning("%s is not scored: %s", item.key, item.skipped.reason)
                yield SamplePrediction(**sample, values=None, error=item.skipped.reason)
            else:
                output_V, kept_V = next(outputs)
                values = model.task.combine(model.task.predict(output_V), item.time_VT)
                sample["loss"] = _loss(model.task, output_V, targets, item, device)
                yield SamplePrediction(**sample, values=values, tokens=float(kept_V.mean()))


def _loss(
    task: Task, output_V: Tensor, targets: Targets, item: EvaluationItem, device: torch.device
) -> float:
    """Mean loss of a sample's views, as in training."""
    sample_V = torch.full((len(output_V),), item.position)
    of_views = targets.of_clips(sample_V, item.time_VT)
    loss_V = task.loss(output_V.to(device), {name: target.to(device) for name, target in of_views.items()})
    return loss_V.double().mean().item()


def _forward(
    model: TaskModel, views: list[Pixels], *, limit: int, device: torch.device
) -> list[tuple[Tensor, Tensor]]:
    """Return output_V and kept_V of each video, on the CPU. A forward pass has at most `limit` views."""
    if not views:
        return []
    joined = join(views)
    outputs, kept = [], []
    for begin in range(0, len(joined), limit):
        output_B, kept_B = model.output(on_device(joined[begin : begin + limit], device))
        outputs.append(output_B)
        kept.append(kept_B)
    lengths = [len(pixels) for pixels in views]
    columns = (torch.cat(parts).float().cpu().split(lengths) for parts in (outputs, kept))
    return list(zip(*columns, strict=True))


def score_samples(
    task: Task, predictions: list[SamplePrediction], index: ShardIndex, *, key: str
) -> dict[str, Any]:
    """Compute the metrics of a task over the readable samples, and list the others.

    Args:
        key: config key and folder of the data, for messages.

    Raises:
        DataError: no sample could be read.
    """
    read = [each for each in predictions if each.values is not None]
    failed = [each for each in predictions if each.values is None]
    if not read:
        error = failed[0].error if failed else "the data set is empty"
        raise DataError(f"{key}: expected readable videos, got none; first error: {error}")
    return {
        "metric": task.metric,
        **task.score(read, task.read(index, key=key)),
        "loss": sum(each.loss for each in read) / len(read),
        "videos": len(read),
        "skipped": [{"key": each.key, "error": each.error} for each in failed],
    }


def _mean_tokens(predictions: list[SamplePrediction]) -> float:
    """Average the tokens per view over the readable samples."""
    tokens = [each.tokens for each in predictions if each.values is not None]
    return sum(tokens) / max(1, len(tokens))


def batched(items: Iterable[EvaluationItem], size: int) -> Iterator[list[EvaluationItem]]:
    """Group consecutive items; the last group may be smaller."""
    iterator = iter(items)
    while group := list(islice(iterator, size)):
        yield group


def _load_run_config(run_dir: Path, overrides: list[str], *, is_imported: bool) -> FinetuneConfig:
    for override in overrides:
        if not override.startswith(_OVERRIDABLE):
            key = override.partition("=")[0]
            keys, components = all_keys(FinetuneConfig), component_keys(FinetuneConfig)
            if not is_key(key, keys, components) and key not in {known.partition(".")[0] for known in keys}:
                raise ValueError(unknown_key(key, keys, components=components))
            allowed = ", ".join(name.rstrip(".") for name in _OVERRIDABLE)
            raise ValueError(
                f"{key}: expected a key that evaluate can override ({allowed}); the run fixes {key}"
            )
    if is_imported:
        folder = json.dumps(str(run_dir))
        required = [f"run_dir={folder}", f"encoder={folder}", "epochs=1", "data.train=none"]
        return load_config(FinetuneConfig, None, [*required, *overrides])
    path = run_dir / "config.yaml"
    if not path.is_file():
        raise CheckpointError(
            f"{path}: expected a run's config, got no file; fix: give the run_dir of a `finetune train`"
        )
    return load_config(FinetuneConfig, path, overrides)
