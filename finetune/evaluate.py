"""Multi-view evaluation of a fine-tuned model: score several clips and crops of each validation video."""

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

from kinemae.data_tools.command import CheckpointError, DataError, log
from kinemae.data_tools.config import all_keys, component_keys, load_config
from kinemae.data_tools.config_hints import is_key, unknown_key
from kinemae.data_tools.files import atomic_write_text, to_json_lines
from kinemae.data_tools.index import ShardIndex
from kinemae.finetune.adapt.lora import merged
from kinemae.finetune.build import clip_config
from kinemae.finetune.compare import RESULT_NAME
from kinemae.finetune.config import EvaluateConfig, FinetuneConfig
from kinemae.finetune.evaluation.cost import model_cost
from kinemae.finetune.evaluation.inference import predict_samples
from kinemae.finetune.evaluation.predictions import FILE, PredictionTable, prediction_table, write_predictions
from kinemae.finetune.evaluation.uncertainty import add_uncertainty
from kinemae.finetune.labels.data_sets import NO_TRAINING_DATA, DataSet, open_scored
from kinemae.finetune.model_file import DESCRIPTION, FinetunedModel, load_model, load_settings
from kinemae.finetune.task_model import TaskModel
from kinemae.finetune.tasks.base import SamplePrediction, Task
from kinemae.finetune.validation.scored_model import load_scored_model
from kinemae.pretrain.runtime.processes import (
    Processes,
    destroy_process_group,
    find_processes,
    init_process_group,
    share_cores,
)

_LOW_COVERAGE = 0.9
# Prefixes of the keys that `evaluate` accepts; the trained model determines all other keys.
_OVERRIDABLE = (
    *("evaluate.", "pruning", "merge.", "data.validation", "data.test", "data.num_workers", "data.timeout_s"),
    *("data.outage_s", "data.cache_dir", "data.cache_gb", "data.read_ahead", "data.leaks"),
    *("batch.clips_per_device", "clip.short_video", "engine."),
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
    processes = find_processes(config.engine.device)
    clip = clip_config(config, finetuned.description)
    data = open_scored(config, finetuned.model.task, clip, check_shards=processes.is_first)
    if arguments.dry_run:
        views = f"{config.evaluate.temporal_clips} x {config.evaluate.spatial_crops} views each"
        if config.evaluate.sliding:
            views = f"sliding clips x {config.evaluate.spatial_crops} crops"
        log.info("would score %d videos of %s with %s", len(data.index), data.key, views)
        return
    finetuned.model.to(processes.device)
    try:
        init_process_group(processes)
        evaluation = evaluate(finetuned, data, config, processes)
        evaluation.result.update(selected)
        if is_imported:  # it was not trained here
            evaluation.result["run"] |= {"lr": 0.0, "epochs": 0}
        write_result(evaluation, run_dir, processes, as_json=arguments.json)
    finally:
        destroy_process_group()


class Evaluation(NamedTuple):
    """A result, as `result.json` has it, and the predictions of all samples."""

    result: dict[str, Any]
    table: PredictionTable


def evaluate(
    finetuned: FinetunedModel, data: DataSet, config: FinetuneConfig, processes: Processes
) -> Evaluation:
    """Score a model on every video of a data set, divided among the processes; all return the same.

    Raises:
        DataError: no video could be read.
        StorageUnavailable: a storage did not respond for data.outage_s.
    """
    workers = share_cores(processes, workers=config.data.num_workers, cpu_threads=config.engine.cpu_threads)
    config = replace(config, data=replace(config.data, num_workers=workers))
    start_s = time.perf_counter()
    predictions = predict_samples(finetuned, data.index, config, processes)
    seconds = time.perf_counter() - start_s
    model = finetuned.model
    scores = score_samples(model.task, predictions, data.index, key=data.key)
    views = describe_views(config.evaluate, predictions)
    result = {
        **scores,
        "views": views,
        "tokens": {"grid": model.grid_tokens, "kept": _mean_tokens(predictions)},
        "data": {config.scored_data: data.place, "fingerprint": data.index.fingerprint},
        "run": describe_run(config),
    }
    evaluation = None
    if processes.is_first:
        warn_of_gaps(scores)
        with merged(model):
            cost = model_cost(model, data.index, clip_config(config, finetuned.description))
            digest = model_digest(model)
        cost |= {"views_per_video": views["total"], "seconds": seconds, "processes": processes.world}
        cost |= {"videos_per_second": len(predictions) / seconds}
        provenance = {
            "model": digest,
            "task": asdict(finetuned.task),
            **{key: result[key] for key in ("metric", "views", "data", "run")},
            "identity": data.index.identity,
            "config": asdict(config),
        }
        targets = model.task.read(data.index, key=data.key)
        table = prediction_table(predictions, targets, data.index, scores, provenance)
        evaluation = Evaluation({**add_uncertainty(result, table), "cost": cost}, table)
    found = processes.broadcast_object(evaluation)
    assert found is not None
    return found


def warn_of_gaps(scores: Mapping[str, Any]) -> None:
    """Log a warning if the clips leave out many frames of videos whose labels are scored over time."""
    coverage = scores.get("coverage", 1.0)
    if coverage < _LOW_COVERAGE:
        log.warning(
            "the scores are of %.0f %% of the labelled frames, because the clips do not cover the others; "
            "fix: evaluate.temporal_clips=1 evaluate.sliding=true",
            100 * coverage,
        )


def model_digest(model: TaskModel) -> str:
    """Return a digest of the weights of encoder and head in float32."""
    found = hashlib.sha256()
    for name, value in sorted(
        {**model.encoder.state_dict(), **model.head.state_dict(prefix="head.")}.items()
    ):
        found.update(f"{name}{tuple(value.shape)}".encode())
        found.update(value.detach().float().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()[:16]


def describe_run(config: FinetuneConfig) -> dict[str, Any]:
    """Return the settings of a run that are copied into its result."""
    return {
        "encoder": config.encoder,
        "weights": "random" if config.from_scratch else "pretrained",
        "adapt": config.adapt.method,
        "head": config.head.name,
        **asdict(config.token_reduction),
        "lr": config.optim.lr,
        "epochs": config.epochs,
        "seed": config.seed,
    }


def describe_views(views: EvaluateConfig, predictions: Sequence[SamplePrediction]) -> dict[str, Any]:
    """Describe the views of a video for a result; of sliding clips the mean numbers."""
    if not views.sliding:
        clips: dict[str, Any] = {"temporal_clips": views.temporal_clips}
        total: float = views.temporal_clips * views.spatial_crops
    else:
        counts = [each.views for each in predictions if each.values is not None]
        total = sum(counts) / max(1, len(counts))
        sliding = {"overlap": views.overlap, "step_s": views.step_s}
        clips = {"temporal_clips": total / views.spatial_crops, "sliding": sliding}
    return {**clips, "spatial_crops": views.spatial_crops, "total": total}


def write_result(evaluation: Evaluation, run_dir: Path, processes: Processes, *, as_json: bool) -> None:
    """Write `predictions.parquet`, then `result.json`; log the score and optionally print the result.

    Does nothing on ranks above 0.
    """
    if not processes.is_first:
        return
    result = evaluation.result
    write_predictions(evaluation.table, run_dir / FILE)
    atomic_write_text(run_dir / RESULT_NAME, to_json_lines(result))
    metric = result["metric"]
    shown = f"{metric} {result[metric]:.4g}"
    if metric == "top1":
        low, high = result["top1_ci95"]
        values = (100 * value for value in (result["top1"], low, high, result["top5"]))
        shown = "top-1 {:.1f} % (95 % interval {:.1f} - {:.1f}), top-5 {:.1f} %".format(*values)
    counts = (result["videos"], result["views"]["total"])
    log.info("%s, %d videos, %.4g views each: %s", shown, *counts, run_dir / RESULT_NAME)
    if as_json:
        sys.stdout.write(json.dumps(result, ensure_ascii=False) + "\n")


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


def _load_run_config(run_dir: Path, overrides: list[str], *, is_imported: bool) -> FinetuneConfig:
    for override in overrides:
        if not override.startswith(_OVERRIDABLE):
            key = override.partition("=")[0]
            keys, components = all_keys(FinetuneConfig), component_keys(FinetuneConfig)
            if not is_key(key, keys, components) and key not in {known.partition(".")[0] for known in keys}:
                allowed_keys = [one for one in keys if f"{one}.".startswith(_OVERRIDABLE)]
                raise ValueError(unknown_key(key, allowed_keys, components=components))
            allowed = ", ".join(name.rstrip(".") for name in _OVERRIDABLE)
            raise ValueError(
                f"{key}: expected a key that evaluate can override ({allowed}); the run fixes {key}"
            )
    if is_imported:
        folder = json.dumps(str(run_dir))
        required = [f"run_dir={folder}", f"encoder={folder}", "epochs=1", f"data.train={NO_TRAINING_DATA}"]
        chunks, reduction = load_settings(run_dir)
        required += [f"clip.chunks={chunks}", f"pruning={json.dumps(asdict(reduction.pruning))}"]
        required += [f"merge.per_block={reduction.merge_per_block}"]
        config = load_config(FinetuneConfig, None, [*required, *overrides])
        if not (config.data.validation or config.data.test):
            raise ValueError(
                "data.validation: expected a folder of labelled shards to score an imported model, got none; "
                "fix: add data.validation=FOLDER"
            )
        return config
    path = run_dir / "config.yaml"
    if not path.is_file():
        raise CheckpointError(
            f"{path}: expected a run's config, got no file; fix: give the run_dir of a `finetune train`"
        )
    return load_config(FinetuneConfig, path, overrides)
