"""Train an encoder and a head on labelled videos: `kinemae finetune train`, `kinemae.finetune(...)`."""

import argparse
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kinemae.data_tools.call_config import call_config, restored_environment
from kinemae.data_tools.command import DataError, log
from kinemae.data_tools.config import load_config, require, to_yaml
from kinemae.data_tools.files import to_json_lines
from kinemae.data_tools.index import ShardIndex
from kinemae.data_tools.orders.base import Order, build_order
from kinemae.data_tools.packages import quick_imports
from kinemae.data_tools.stream.frame_sampling import ClipConfig
from kinemae.data_tools.stream.loader import prepare_training_loader
from kinemae.data_tools.stream.mixture import Source
from kinemae.data_tools.stream.order import BatchPlan, plan_batch, process_counts
from kinemae.data_tools.stream.training_clips import RunClips, sample_order
from kinemae.finetune.adapt.freezing import starts_at
from kinemae.finetune.adapt.layer_decay import layer_scale
from kinemae.finetune.adapt.lora import check_adapters
from kinemae.finetune.build import build_model, clip_config, describe_encoder
from kinemae.finetune.config import FinetuneConfig, resolve_layer_decay, total_steps
from kinemae.finetune.evaluate import Evaluation, evaluate, write_result
from kinemae.finetune.evaluation.cost import training_flops
from kinemae.finetune.heads.base import Features
from kinemae.finetune.labels.checks import check_batch
from kinemae.finetune.labels.clips import LabelledClips
from kinemae.finetune.labels.data_sets import DataSets, open_data_sets
from kinemae.finetune.labels.sampling import flippable, training_source
from kinemae.finetune.labels.target_flips import TargetFlip
from kinemae.finetune.memory import memory_cost, training_clips
from kinemae.finetune.model_file import FinetunedModel, save_model
from kinemae.finetune.plan.plan import follow_plan
from kinemae.finetune.report.command import write_run_report
from kinemae.finetune.task_model import TaskModel
from kinemae.finetune.tasks.base import Targets, build_task
from kinemae.finetune.validation.scored_model import load_scored_model
from kinemae.finetune.validation.validator import TaskValidator, check_metric
from kinemae.pretrain.exported_model import EncoderDescription, log_resampling
from kinemae.pretrain.folder_kinds import MODEL_FOLDER
from kinemae.pretrain.model.packing import kept_count
from kinemae.pretrain.model_setup import set_up_model
from kinemae.pretrain.runtime.abort import abort_on_error
from kinemae.pretrain.runtime.engine import BlockSettings, check_engine
from kinemae.pretrain.runtime.file_retries import retry_write
from kinemae.pretrain.runtime.inputs import Input, data_inputs, encoder_inputs
from kinemae.pretrain.runtime.loop import Trainer
from kinemae.pretrain.runtime.micro_batch import AutoMicroBatch
from kinemae.pretrain.runtime.muon import iteration_flops
from kinemae.pretrain.runtime.optimizer import check_schedule, parameter_groups
from kinemae.pretrain.runtime.processes import Processes, find_processes, init_process_group
from kinemae.pretrain.runtime.run_folder import check_run_dir, open_run_dir, run_lock
from kinemae.pretrain.runtime.weight_average import evaluation_weights, with_average

RAW_FOLDER = "model_raw"
_CALIBRATION_CLIPS = 256


@dataclass(frozen=True, kw_only=True)
class PreparedRun:
    """A checked run, before its processes join a group.

    Attributes:
        plan: with `batch.clips_per_device=auto` one micro-batch, until `with_micro_batch`.
        auto: has chosen the micro-batch; None if the config has it.
        micro_batch: the reason of its choice.
    """

    config: FinetuneConfig
    data: DataSets
    source: Source
    order: Order
    may_flip_R: np.ndarray | None
    description: EncoderDescription
    model: TaskModel
    targets: Targets
    flip: TargetFlip
    plan: BatchPlan
    processes: Processes
    continues: bool
    inputs: tuple[Input, ...]
    auto: AutoMicroBatch | None = None
    micro_batch: str | None = None

    def with_micro_batch(self, *, must_fit: bool = True) -> "PreparedRun":
        """The run with the micro-batch that fits this process's device, see `AutoMicroBatch.estimate`."""
        if not self.config.batch.is_auto:
            return self
        auto = _auto_micro_batch(self)
        plan, reason = auto.estimate(must_fit=must_fit)
        return replace(self, plan=plan, auto=auto, micro_batch=reason)

    @property
    def train(self) -> ShardIndex:
        """The samples to train with."""
        return self.data.train.index

    @property
    def steps(self) -> int:
        """Number of optimizer steps of the whole run."""
        return total_steps(self.config, len(self.train))

    @property
    def finetuned(self) -> FinetunedModel:
        """The model to train, as it is saved."""
        return FinetunedModel(model=self.model, description=self.description, task=self.config.task)

    def summary(self) -> dict[str, object]:
        """Return the plan that `--dry-run` prints."""
        config, plan = self.config, self.plan
        parameters = list(self.model.parameters())
        tokens, keep = self.model.grid_tokens, self.model.pruning.keep
        return {
            "run_dir": config.run_dir,
            "continues": self.continues,
            "encoder": config.encoder,
            "weights": "random" if config.from_scratch else "pretrained",
            "adapt": config.adapt.method,
            "layer_decay": config.optim.layer_decay,
            "training_videos": len(self.train),
            "validation_videos": len(self.data.selection.index),
            "scored_videos": len(self.data.scored.index),
            "steps_between_validations": self._validation_interval(),
            "task": config.task.name,
            "outputs": self.model.task.outputs,
            "steps": self.steps,
            "global_clips": plan.global_clips,
            "processes": plan.world,
            "process_counts": process_counts(
                lambda world: _plan_batch(config, world, config.batch.limit), plan.world
            ),
            "clips_per_process_at_once": plan.micro_clips,
            "accumulation": plan.accumulation,
            **({} if self.micro_batch is None else {"micro_batch": self.micro_batch}),
            "tokens": tokens,
            "kept_tokens": "differs per clip" if keep is None else kept_count(tokens, keep),
            "parameters": sum(each.numel() for each in parameters),
            "trainable_parameters": sum(each.numel() for each in parameters if each.requires_grad),
        }

    def _validation_interval(self) -> float | None:
        validate = self.config.validate
        return round(validate.interval(self.steps_per_epoch, self.steps), 2) if validate.is_on else None

    @property
    def steps_per_epoch(self) -> float:
        """Number of steps in which each training video is used once; may be a fraction."""
        return len(self.train) * self.config.data.views_per_video / self.plan.global_clips


def run_train(arguments: argparse.Namespace) -> None:
    """Check the config and the data, train, save the model, and score it."""
    config = load_config(FinetuneConfig, arguments.config, arguments.overrides)
    if config.auto:
        config = follow_plan(config, arguments.config, arguments.overrides)
    prepared = prepare(config)
    if arguments.dry_run:
        text = to_json_lines(prepared.with_micro_batch(must_fit=False).summary())
        sys.stdout.write(text if arguments.json else f"{to_yaml(prepared.config)}\n{text}")
        return
    _train_and_score(prepared, as_json=arguments.json)


@restored_environment()
def finetune(config: str | Path | Mapping[str, Any], **settings: Any) -> dict[str, Any]:
    """Fine-tune an encoder and score the model, or continue the run, as `kinemae finetune train` does.

    Args:
        config: path of a config, its name, or its keys as a nested mapping.
        settings: keys that replace those of the config, such as `epochs=5` or `data={"train": FOLDER}`.

    Returns:
        The content of `result.json`, and "model" with the folder of the run.

    Raises:
        ValueError, DataError, CheckpointError, Diverged, Stopped: the errors of the command.
    """
    called = call_config(FinetuneConfig, "finetune", config, settings)
    config_of_run = called.config
    if config_of_run.auto:
        config_of_run = follow_plan(config_of_run, called.path, called.overrides)
    evaluation = _train_and_score(prepare(config_of_run), as_json=False)
    return {**evaluation.result, "model": config_of_run.run_dir}


def _train_and_score(prepared: PreparedRun, *, as_json: bool) -> Evaluation:
    """Collective. Train, save the model, score it, and write its report."""
    config, processes = prepared.config, prepared.processes
    run_dir = Path(config.run_dir)
    with abort_on_error(processes), run_lock(run_dir, processes, config.timeouts):
        prepared = prepared.with_micro_batch()
        if processes.is_first:
            open_run_dir(run_dir, config, prepared.inputs)
        run = training(prepared)
        init_process_group(processes, config.timeouts)
        run.prepare()
        calibrate_head(prepared, run)
        train_and_save(prepared, run)
        finetuned, selected = load_scored_model(config, run_dir)
        finetuned.model.to(processes.device)
        scored = replace(config, batch=run.config.batch)  # with the micro-batch that fits
        evaluation = evaluate(finetuned, prepared.data.scored, scored, processes)
        evaluation.result.update(selected)
        write_result(evaluation, run_dir, processes, as_json=as_json)
        if config.report and processes.is_first:
            write_run_report(run_dir)
    return evaluation


def prepare(config: FinetuneConfig) -> PreparedRun:
    """Check the config and the data and build the model, before processes join a group.

    Raises:
        ValueError: invalid config.
        DataError: unusable shards or labels.
        CheckpointError: unusable encoder.
    """
    config = resolve_layer_decay(config)
    processes = find_processes(config.engine.device)
    plan, order = _check_settings(config, processes), build_order(config.data.order)
    description = describe_encoder(config)
    task = build_task(config.task)
    clip = clip_config(config, description)
    data = open_data_sets(config, task, clip, check_shards=processes.is_first)
    inputs = [*_data_inputs(config, data), *encoder_inputs("encoder", config.encoder)]
    continues = processes.is_first and check_run_dir(Path(config.run_dir), config, inputs)
    train = data.train.index
    targets = task.read(train, key=data.train.key)
    source = training_source(train, task, targets, config.data)
    sample_order(order, source, plan.global_clips // config.data.views_per_video)
    may_flip_R = flippable(task, targets, config.augment)
    flip = task.target_flip(list(config.augment.flip_pairs.items()))
    check_batch(config, train)
    check_schedule(total_steps(config, len(train)), config.optim)
    if processes.is_first:
        log_resampling(description.reference, description.grid)
        log_initial_weights(config)
    prepared = PreparedRun(
        config=config,
        data=data,
        source=source,
        order=order,
        may_flip_R=may_flip_R,
        flip=flip,
        description=description,
        model=build_model(config, description, task),
        targets=targets,
        plan=plan,
        processes=processes,
        continues=continues,
        inputs=tuple(inputs),
    )
    check_metric(config, prepared.finetuned, data.selection)
    return prepared


def _check_settings(config: FinetuneConfig, processes: Processes) -> BatchPlan:
    """Check that the engine supports the settings, and plan the batch."""
    is_packed = config.token_reduction.is_packed
    check_engine(config.engine, processes, _block_settings(config))
    check_adapters(config.adapt, zero_stage=config.engine.zero_stage, is_packed=is_packed)
    packed = config.batch.is_auto and is_packed
    expected = "be a number with pruning.args.keep=null, whose clips keep different numbers of tokens"
    require(not packed, "batch.clips_per_device", expected, "auto")
    return _plan_batch(config, processes.world, config.batch.limit)


def _plan_batch(config: FinetuneConfig, world: int, limit: int | None) -> BatchPlan:
    views = config.mix.group_size(config.data.views_per_video)
    of_two = "2 x data.views_per_video (mix takes two videos)"
    unit = of_two if config.mix.is_on else "data.views_per_video"
    return plan_batch(config.batch.global_clips, limit, world, views, unit=unit)


def _auto_micro_batch(prepared: PreparedRun) -> AutoMicroBatch:
    config, processes, targets = prepared.config, prepared.processes, prepared.targets
    clip = clip_config(config, prepared.description)
    return AutoMicroBatch(
        measure=partial(memory_cost, prepared.model, config, processes.device, clip=clip, targets=targets),
        divide=lambda limit: _plan_batch(config, processes.world, limit),
        smallest=config.mix.group_size(config.data.views_per_video),
        clips=partial(training_clips, clip=clip, targets=targets),
        processes=processes,
    )


def _block_settings(config: FinetuneConfig) -> BlockSettings:
    return BlockSettings(
        merges=config.merge.per_block > 0,
        packs=config.token_reduction.is_packed,
        drops=config.adapt.dropout > 0,
    )


def _data_inputs(config: FinetuneConfig, data: DataSets) -> list[Input]:
    """The data sets that determine the training; one that is only scored may change."""
    inputs = data_inputs("data.train", config.data.train, data.whole.index)
    if config.data.validation is not None and config.selection_data == "validation":
        inputs += data_inputs("data.validation", config.data.validation, data.selection.index)
    return inputs


@quick_imports()  # counting FLOPs imports torch._dynamo
def training(prepared: PreparedRun) -> Trainer:
    """Create the training loop."""
    config = prepared.config
    clip = clip_config(config, prepared.description)
    clips = LabelledClips(
        prepared.source,
        targets=prepared.targets,
        flip=prepared.flip,
        clip=clip,
        augment=config.augment,
        seed=config.seed,
        views=config.data.views_per_video,
        annotate=None,
        may_flip_R=prepared.may_flip_R,
        order=prepared.order,
        videos_per_step=prepared.plan.global_clips // config.data.views_per_video,
    )
    prepare_training_loader(clips.annotate, workers=config.data.num_workers)
    flops = _step_flops(prepared, clip)  # before blocks are set up: repeated FLOPs do not count
    compiled = set_up_model(prepared.model, config.engine, prepared.processes, _block_settings(config))
    assert config.optim.layer_decay is not None, "prepare sets it"
    depth, optim, model = prepared.description.shape.depth, config.optim, prepared.model
    return Trainer(
        module=model,
        groups=parameter_groups(
            model,
            optim.weight_decay,
            layer_scale(config.optim.layer_decay, depth, head=optim.head_lr_scale),
            starts_at(model.encoder, config.adapt.unfreeze_at),
            muon_scale=optim.muon_scale,
        ),
        clips=clips,
        plan=prepared.plan,
        auto=prepared.auto,
        config=config,
        steps=prepared.steps,
        step_flops=flops,
        compiled=compiled,
        processes=prepared.processes,
    )


def _step_flops(prepared: PreparedRun, clip: ClipConfig) -> float | None:
    """Training FLOPs of a step over all processes, on the first one; None if they are not known."""
    flops = training_flops(prepared.model, clip) if prepared.processes.is_first else None
    if flops is None:
        return None
    of_update = iteration_flops(prepared.model) if prepared.config.optim.optimizer == "muon" else 0
    return flops * prepared.plan.global_clips + of_update


def train_and_save(prepared: PreparedRun, run: Trainer) -> None:
    """Collective. Train with validations, and save the last model; with a moving average also the raw one."""
    config, processes = prepared.config, prepared.processes
    run.module = with_average(prepared.model, config.ema, steps=prepared.steps)
    if config.validate.is_on:
        assert isinstance(run.config, FinetuneConfig)
        run.validator = TaskValidator(
            finetuned=prepared.finetuned,
            trained=run.module,
            data=prepared.data.selection,
            config=run.config,  # with the number of loader workers
            processes=processes,
            steps=prepared.steps,
            steps_per_epoch=prepared.steps_per_epoch,
            write=partial(_save, prepared.finetuned, config),
        )
    done = run.run().step
    if processes.is_first:
        run_dir = Path(config.run_dir)
        if config.ema.decay:
            retry_write(partial(_save, prepared.finetuned, config, run_dir / RAW_FOLDER, done), run_dir)
        with evaluation_weights(run.module):
            retry_write(partial(_save, prepared.finetuned, config, run_dir / MODEL_FOLDER, done), run_dir)
    processes.barrier()


def log_initial_weights(config: FinetuneConfig) -> None:
    """Log the encoder's initial weights and the layer-wise learning rate decay."""
    weights = "random weights" if config.from_scratch else f"the weights of {config.encoder}"
    log.info("the encoder starts from %s; optim.layer_decay is %g", weights, config.optim.layer_decay)
    if config.from_scratch and config.optim.layer_decay != 1:
        log.warning(
            "optim.layer_decay: expected null or 1 with random weights, got %g, which slows the lower "
            "layers; fix: optim.layer_decay=null",
            config.optim.layer_decay,
        )


def calibrate_head(prepared: PreparedRun, run: Trainer) -> None:
    """Calibrate a head that needs it on the first clips of the run, encoded with the initial weights.

    Rank 0 measures for all ranks. A continued run repeats this before it loads its checkpoint.
    """
    model, processes = prepared.model, prepared.processes
    if not model.head.needs_calibration:
        return
    if processes.is_first:
        model.to(processes.device).eval()
        with torch.no_grad():
            model.head.calibrate(_calibration_features(prepared, run.clips))
        model.train()
    measured = processes.broadcast_object({name: buffer.cpu() for name, buffer in model.head.named_buffers()})
    for name, buffer in model.head.named_buffers():
        buffer.copy_(measured[name])


def _calibration_features(prepared: PreparedRun, clips: RunClips[Any]) -> Features:
    """Encode the first clips of the run, without those that could not be read, which are black.

    Raises:
        DataError: none could be read.
    """
    count, step = min(_CALIBRATION_CLIPS, len(prepared.train) * clips.views), prepared.plan.micro_clips
    features: list[Features] = []
    for first in range(0, count, step):
        batch = clips.batch(range(first, min(first + step, count))).to(prepared.processes.device)
        if len(batch.skipped) < len(batch.keys):
            features.append(prepared.model.features(batch.clip_BCTHW[batch.weight_B > 0]))
    if not features:
        raise DataError(
            f"{prepared.data.train.key}: expected readable videos to measure head.args.norm=standardize, got "
            f"none in {count} clips, the last one {batch.skipped[-1].reason}; fix: repair or remove them"
        )
    return Features.join(features)


def _save(finetuned: FinetunedModel, config: FinetuneConfig, folder: Path, steps: int) -> None:
    trained_by = {
        "task": "finetune",
        "steps": steps,
        "config": asdict(config),
        "encoder_trained_by": finetuned.description.trained_by,
    }
    save_model(
        folder,
        replace(finetuned, description=replace(finetuned.description, trained_by=trained_by)),
        head=config.head,
        save_peft=config.adapt.save_adapter,
        token_reduction=config.token_reduction,
    )
