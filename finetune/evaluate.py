"""Scoring a fine-tuned model: several clips and crops of each video, each video counted once."""

import argparse
import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kinemae.data_tools.command import CheckpointError, log
from kinemae.data_tools.config import load_config
from kinemae.data_tools.config_hints import is_key, unknown_key
from kinemae.data_tools.config_schema import all_keys, component_keys
from kinemae.data_tools.files import write_whole
from kinemae.data_tools.index import ShardIndex, open_index
from kinemae.data_tools.progress import progress
from kinemae.data_tools.stream.loader import EvaluationItem, evaluation_loader
from kinemae.data_tools.stream.yuv_to_rgb import Pixels, join, on_device
from kinemae.finetune.build import clip_config
from kinemae.finetune.compare import RESULT_NAME
from kinemae.finetune.config import FinetuneConfig
from kinemae.finetune.data_checks import check_validation
from kinemae.finetune.model_file import DESCRIPTION, FinetunedModel, load_model
from kinemae.finetune.scoring import Vote, average_views, score
from kinemae.pretrain.runtime.cores import share_cores
from kinemae.pretrain.runtime.processes import Processes, find_processes, join_group, leave_group
from kinemae.pretrain.runtime.settings import precision_on

MODEL_FOLDER = "model"

# What may differ from the run's own config: the rest is settled by the model.
_OVERRIDABLE = (
    "evaluate.",
    "pruning",
    "merge.",
    "data.validation",
    "data.workers",
    "data.timeout_s",
    "data.outage_s",
    "data.cache_dir",
    "data.cache_gb",
    "batch.clips_per_device",
    "engine.",
    "clip.short_video",
)


def run_evaluate(arguments: argparse.Namespace) -> None:
    """`kinemae finetune evaluate RUN [a.b=c]`; an imported model without a run around it will do."""
    run_dir = Path(arguments.run_dir)
    is_imported = (run_dir / DESCRIPTION).is_file()
    config = _stored_config(run_dir, arguments.overrides, is_imported=is_imported)
    model = load_model(run_dir if is_imported else run_dir / MODEL_FOLDER, shortening=config.shortening)
    index = open_index(config.data.validation, cache=config.data.cache, outage_s=config.data.outage_s)
    check_validation(index, model.classes, folder=config.data.validation)
    processes = find_processes(config.engine.device)
    if arguments.dry_run:
        log.info("would score %d videos of %s with %s", len(index), config.data.validation, _views(config))
        return
    model.classifier.to(processes.device)
    try:
        join_group(processes)
        result = evaluate(model, index, config, processes)
        result["run"] |= {"lr": 0.0, "epochs": 0} if is_imported else {}  # nothing was trained here
        publish(result, run_dir, processes, as_json=arguments.json)
    finally:
        leave_group()


def evaluate(
    model: FinetunedModel, index: ShardIndex, config: FinetuneConfig, processes: Processes
) -> dict[str, Any]:
    """Score a model on every video of an index; all processes share the work and get the same result.

    Raises:
        DataError: not one video could be read.
        StorageUnavailable: a storage was down for data.outage_s.
    """
    items = evaluation_loader(
        index,
        clip=clip_config(config, model.description),
        temporal_clips=config.evaluate.temporal_clips,
        spatial_crops=config.evaluate.spatial_crops,
        rank=processes.rank,
        world=processes.world,
        workers=share_cores(processes, workers=config.data.workers, cpu_threads=config.engine.cpu_threads),
        timeout_s=config.data.timeout_s,
        decoder=config.data.decoder,
    )
    share = len(range(processes.rank, len(index), processes.world))
    shown = progress(items, total=share, what="scoring") if processes.is_first else items
    votes = list(_votes(model, shown, config, processes.device))
    gathered = [vote for part in processes.gather(votes) for vote in part]
    views = config.evaluate.temporal_clips * config.evaluate.spatial_crops
    return {
        **score(gathered, model.classes, validation=config.data.validation),
        "views": {
            "temporal_clips": config.evaluate.temporal_clips,
            "spatial_crops": config.evaluate.spatial_crops,
            "total": views,
        },
        "tokens": {"grid": model.description.grid.tokens, "kept": _mean_tokens(gathered)},
        "data": {"validation": config.data.validation, "fingerprint": index.fingerprint},
        "run": {
            "encoder": config.encoder,
            "weights": "random" if config.from_scratch else "pretrained",
            "freeze": config.freeze,
            "head": config.head.name,
            **asdict(config.shortening),
            "lr": config.optim.lr,
            "epochs": config.epochs,
            "seed": config.seed,
        },
    }


def publish(result: dict[str, Any], run_dir: Path, processes: Processes, *, as_json: bool) -> None:
    """Write `result.json`, log the score, print the json where asked for: the first process alone."""
    if not processes.is_first:
        return
    # One key a line: a confusion matrix indented number by number would bury the rest.
    lines = [f" {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}" for key, value in result.items()]
    write_whole(run_dir / RESULT_NAME, "{\n" + ",\n".join(lines) + "\n}\n")
    low, high = result["top1_interval"]
    log.info(
        "top-1 %.1f %% (95 %% interval %.1f - %.1f), top-5 %.1f %%, %d videos, %d views each: %s",
        100 * result["top1"],
        100 * low,
        100 * high,
        100 * result["top5"],
        result["videos"],
        result["views"]["total"],
        run_dir / RESULT_NAME,
    )
    if as_json:
        sys.stdout.write(json.dumps(result, ensure_ascii=False) + "\n")


def _votes(
    model: FinetunedModel, items: Iterable[EvaluationItem], config: FinetuneConfig, device: torch.device
) -> Iterator[Vote]:
    """One vote an item, in the items' order."""
    limit = config.batch.clips_per_device
    is_half = precision_on(config.engine, device) == "bf16"
    model.classifier.eval()
    for group in _grouped(items, limit):
        views = [item.pixels for item in group if item.skipped is None]
        with torch.inference_mode(), torch.autocast(device.type, dtype=torch.bfloat16, enabled=is_half):
            scored = iter(_scored(model, views, limit=limit, device=device))
        for item in group:
            if item.skipped is not None:
                log.warning("%s cannot be scored: %s", item.key, item.skipped.reason)
                yield Vote(
                    position=item.position,
                    key=item.key,
                    label=item.label,
                    probability_Y=None,
                    reason=item.skipped.reason,
                )
            else:
                logits_VY, kept_V = next(scored)
                yield Vote(
                    position=item.position,
                    key=item.key,
                    label=item.label,
                    probability_Y=average_views(logits_VY),
                    tokens=float(kept_V.mean()),
                )


def _scored(
    model: FinetunedModel, views: list[Pixels], *, limit: int, device: torch.device
) -> list[tuple[Tensor, Tensor]]:
    """Scores and kept tokens of each video's views, on at most `limit` views at once, whichever video's."""
    if not views:
        return []
    everything = join(views)
    logits, kept = [], []
    for begin in range(0, len(everything), limit):
        features = model.classifier.features(on_device(everything[begin : begin + limit], device))
        logits.append(model.classifier.head(features.tokens_BND, None, features.weight_BN))
        kept.append(features.kept_B)
    lengths = [len(pixels) for pixels in views]
    columns = (torch.cat(parts).float().cpu().split(lengths) for parts in (logits, kept))
    return list(zip(*columns, strict=True))


def _mean_tokens(votes: list[Vote]) -> float:
    """Over the videos that could be read, each once."""
    read = {vote.position: vote.tokens for vote in votes if vote.probability_Y is not None}
    return sum(read[position] for position in sorted(read)) / max(1, len(read))


def _grouped(items: Iterable[EvaluationItem], limit: int) -> Iterator[list[EvaluationItem]]:
    """Gather neighbouring videos until they make `limit` views together, so that small ones share a batch."""
    group: list[EvaluationItem] = []
    held = 0
    for item in items:
        group.append(item)
        held += len(item.pixels)
        if held >= limit:
            yield group
            group, held = [], 0
    if group:
        yield group


def _stored_config(run_dir: Path, overrides: list[str], *, is_imported: bool) -> FinetuneConfig:
    for override in overrides:
        if not override.startswith(_OVERRIDABLE):
            key = override.partition("=")[0]
            free = ", ".join(name.rstrip(".") for name in _OVERRIDABLE)
            keys, parts = all_keys(FinetuneConfig), component_keys(FinetuneConfig)
            if not is_key(key, keys, parts) and key not in {known.partition(".")[0] for known in keys}:
                raise ValueError(unknown_key(key, keys, parts=parts))
            raise ValueError(f"{key} is settled by the run: evaluate takes overrides of {free}")
    if is_imported:
        folder = json.dumps(str(run_dir))
        needed = [f"run_dir={folder}", f"encoder={folder}", "epochs=1", "data.train=none"]
        return load_config(FinetuneConfig, None, [*needed, *overrides])
    path = run_dir / "config.yaml"
    if not path.is_file():
        raise CheckpointError(
            f"no run in {run_dir} (it lacks config.yaml): give the run_dir of a `finetune train`"
        )
    return load_config(FinetuneConfig, path, overrides)


def _views(config: FinetuneConfig) -> str:
    return f"{config.evaluate.temporal_clips} x {config.evaluate.spatial_crops} views each"
