"""Build and check a pretraining run before any process group starts; run it; export the encoder."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from kinemae.data_tools.command import DataError, log
from kinemae.data_tools.config import require
from kinemae.data_tools.folder_checks import index_command
from kinemae.data_tools.index import ShardIndex
from kinemae.data_tools.orders.base import Order, build_order
from kinemae.data_tools.overrides import as_override
from kinemae.data_tools.packages import quick_imports
from kinemae.data_tools.storage.location import location
from kinemae.data_tools.stream.augment import NO_AUGMENTATION
from kinemae.data_tools.stream.frame_sampling import check_stride
from kinemae.data_tools.stream.loader import (
    Annotate,
    EvaluationItem,
    TrainingClips,
    prepare_training_loader,
)
from kinemae.data_tools.stream.mixture import Mixture, SeveralSets, data_sets, open_source
from kinemae.data_tools.stream.order import BatchPlan, plan_batch, process_counts
from kinemae.data_tools.stream.streamed_clips import StreamedClips
from kinemae.data_tools.stream.tar_list import TarList, is_tars, open_tars
from kinemae.data_tools.stream.training_clips import RunClips, sample_order
from kinemae.pretrain.builders import (
    Components,
    block_settings,
    build_components,
    build_model,
    token_selection,
)
from kinemae.pretrain.callbacks import Schedule
from kinemae.pretrain.checkpoint_encoder import describe_run_encoder
from kinemae.pretrain.config import PretrainConfig
from kinemae.pretrain.cost import black_clips, memory_cost, step_flops
from kinemae.pretrain.exported_model import (
    describe_decoder,
    log_resampling,
    save_decoder,
    save_encoder,
)
from kinemae.pretrain.folder_kinds import ENCODER_FOLDER
from kinemae.pretrain.init_weights_from import open_pretrained
from kinemae.pretrain.model.autoencoder import MaskedAutoencoder
from kinemae.pretrain.model.tokens import TokenGrid
from kinemae.pretrain.model_setup import set_up_model
from kinemae.pretrain.reconstructions import ReconstructionLogger
from kinemae.pretrain.representation_monitor import (
    FirstVideos,
    KnnProbe,
    RepresentationMonitor,
    open_probe,
    spread_videos,
)
from kinemae.pretrain.runtime.engine import check_engine
from kinemae.pretrain.runtime.file_retries import retry_write
from kinemae.pretrain.runtime.inputs import Input, data_inputs, encoder_inputs, original_places
from kinemae.pretrain.runtime.loop import Callback, Trainer
from kinemae.pretrain.runtime.micro_batch import AutoMicroBatch
from kinemae.pretrain.runtime.optimizer import check_schedule, parameter_groups
from kinemae.pretrain.runtime.processes import Processes, find_processes
from kinemae.pretrain.runtime.run_folder import check_run_dir, open_run_dir
from kinemae.pretrain.runtime.settings import on_device
from kinemae.pretrain.runtime.weight_average import evaluation_weights, with_average
from kinemae.pretrain.token_selection import TokenSelection

RAW_FOLDER = "encoder_raw"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A resolved and checked config, for `--dry-run` and `run_pretraining`.

    Attributes:
        batch: with `batch.clips_per_device=auto` one micro-batch, until `with_micro_batch`.
        auto: has chosen the micro-batch; None if the config has it.
        micro_batch: the reason of the choice.
    """

    config: PretrainConfig
    processes: Processes
    index: ShardIndex | SeveralSets | TarList
    batch: BatchPlan
    order: Order
    split: TokenSelection
    model: MaskedAutoencoder
    probe: KnnProbe | None
    continues: bool
    inputs: tuple[Input, ...]
    auto: AutoMicroBatch | None = None
    micro_batch: str | None = None

    def with_micro_batch(self, *, must_fit: bool = True) -> "Plan":
        """The plan with the micro-batch that fits this process's device, see `AutoMicroBatch.estimate`."""
        if not self.config.batch.is_auto:
            return self
        auto = _auto_micro_batch(self.config, self.processes)
        batch, reason = auto.estimate(must_fit=must_fit)
        return replace(self, batch=batch, auto=auto, micro_batch=reason)

    def summary(self) -> dict[str, object]:
        """The counts that `--dry-run` prints."""
        grid, config = self.split.grid, self.config
        visible, target_count = self.split.counts()
        return {
            "run_dir": config.run_dir,
            "continues": self.continues,
            "samples": None if isinstance(self.index, TarList) else len(self.index),
            "steps": config.steps,
            "epochs": self._epochs(),
            "global_clips": self.batch.global_clips,
            "processes": self.batch.world,
            "process_counts": process_counts(self._plan_batch, self.batch.world),
            "clips_per_process_at_once": self.batch.micro_clips,
            "accumulation": self.batch.accumulation,
            **({} if self.micro_batch is None else {"micro_batch": self.micro_batch}),
            "tokens": grid.tokens,
            "masks_per_clip": self.split.masks,
            "visible_tokens": visible,
            "encoded_tokens": self.split.encoded(),
            "predicted_tokens": target_count,
            "encoder_parameters": sum(parameter.numel() for parameter in self.model.encoder.parameters()),
            "parameters": sum(parameter.numel() for parameter in self.model.parameters()),
        }

    def _plan_batch(self, world: int) -> BatchPlan:
        return _plan_batch(self.config, world, is_compared=self.model.target.uses_global_batch)

    def _epochs(self) -> float | dict[str, float] | None:
        """Number of epochs; in a mixture, of each set; None without an index."""
        if isinstance(self.index, TarList):
            return None
        videos = self.config.steps * self.batch.global_clips / self.config.data.views_per_video
        if isinstance(self.index, Mixture):
            return {name: round(epochs, 2) for name, epochs in self.index.epochs(videos).items()}
        return round(videos / len(self.index), 2)


def make_plan(config: PretrainConfig, *, is_run: bool = True, prepares_loader: bool = False) -> Plan:
    """Resolve and check a config. Writes nothing.

    Args:
        is_run: whether to check the run folder and the number of videos.
        prepares_loader: start the server of the loader's workers, which imports while the data are opened.

    Raises:
        ValueError: the config cannot be run; the message names the key.
        DataError: the shards cannot be used.
        CheckpointError: `init_from` cannot be used.
    """
    check_schedule(config.steps, config.optim)
    processes = find_processes(config.engine.device)
    check_engine(config.engine, processes, block_settings(config))
    grid = TokenGrid.of(config.clip.frames, config.clip.size, config.model.shape().encoder.patch)
    components = build_components(config, grid)
    batch = _plan_batch(config, processes.world, is_compared=components.target.uses_global_batch)
    order = build_order(config.data.order)
    split = token_selection(config, grid, components)
    if prepares_loader:
        prepare_training_loader(split, workers=config.data.num_workers)
    index, run_dir = _open_data(config, processes), Path(config.run_dir)
    sample_order(order, index, batch.global_clips // config.data.views_per_video)  # type: ignore[arg-type]
    inputs = _inputs(config, index) if is_run else []
    # Only the first process: it may already have opened the folder when another one checks.
    by_progress = _parts_by_progress(config, components)
    check = partial(check_run_dir, run_dir, config, inputs, by_progress=by_progress)
    continues = is_run and processes.is_first and check()
    if is_run:
        _check_enough(index, config)
    if isinstance(index, SeveralSets):  # moved data sets keep their place in the order of clips
        index = index.renamed(original_places(run_dir, inputs))
    return Plan(
        config=config,
        processes=processes,
        index=index,
        batch=batch,
        order=order,
        split=split,
        model=_build_model(config, grid, components, is_first=processes.is_first),
        probe=_open_probe(config, processes),
        continues=continues,
        inputs=tuple(inputs),
    )


def _open_probe(config: PretrainConfig, processes: Processes) -> KnnProbe | None:
    data = config.data
    return open_probe(
        config.monitor, config.clip, data.cache, check_shards=processes.is_first, outage_s=data.outage_s
    )


def _parts_by_progress(config: PretrainConfig, components: Components) -> list[str]:
    """The keys whose effect depends on the fraction of the run that is done, besides the learning rate."""
    parts = {
        "optim.final_weight_decay": config.optim.final_weight_decay is not None,
        "noise": components.noise.follows_progress,
        "target": components.target.follows_progress,
    }
    return [key for key, follows in parts.items() if follows]


def _plan_batch(config: PretrainConfig, world: int, *, is_compared: bool) -> BatchPlan:
    """Divide the global batch; if its clips are compared with each other, each process takes all at once."""
    clips, at_once = config.batch.global_clips, config.batch.limit
    batch = plan_batch(clips, at_once, world=world, views=config.data.views_per_video)
    if not is_compared:
        return batch
    expected = "be at least 2 with target.name=views, which compares the clips of the batch"
    require(clips >= 2, "batch.global_clips", expected, clips)
    if batch.accumulation > 1:
        raise ValueError(
            "batch.clips_per_device: expected one micro-batch per step with target.name=views, which compares"
            f" the clips of the global batch, got {batch.accumulation} micro-batches; fix: set "
            f"batch.clips_per_device={clips // world}, with engine.activation_checkpointing=true if memory "
            "is short, or start more processes"
        )
    return batch


def _auto_micro_batch(config: PretrainConfig, processes: Processes) -> AutoMicroBatch:
    here = replace(config, engine=on_device(config.engine, processes.device))
    clips, views = config.batch.global_clips, config.data.views_per_video
    return AutoMicroBatch(
        measure=partial(memory_cost, here),
        divide=lambda limit: plan_batch(clips, limit, processes.world, views),
        smallest=views,
        clips=black_clips(here),
        processes=processes,
    )


def _build_model(
    config: PretrainConfig, grid: TokenGrid, components: Components, *, is_first: bool
) -> MaskedAutoencoder:
    """Build the model of a run with its initial weights. A continued run loads its checkpoint afterwards."""
    pretrained = open_pretrained(config.init_from)
    torch.manual_seed(config.seed)
    model = build_model(
        config, grid, components, reference=None if pretrained is None else pretrained.description.reference
    )
    if pretrained is not None:
        message = pretrained.load_pretrained(model, config.target)
        if is_first:
            log.info("%s", message)
            log_resampling(pretrained.description.reference, grid)
    return model


def run_pretraining(plan: Plan) -> Plan:
    """Train; then export the encoder, and the decoder if there is one, to `RUN/encoder`.

    With `ema.decay` these are the averaged weights, and `RUN/encoder_raw` has the last ones.

    Returns:
        The plan with the micro-batch of the run.
    """
    plan = plan.with_micro_batch()
    config, processes = plan.config, plan.processes
    if processes.is_first:
        open_run_dir(Path(config.run_dir), config, plan.inputs)
    trainer = make_trainer(plan)
    trainer.run()
    if processes.is_first:
        run_dir = Path(config.run_dir)
        if config.ema.decay:
            retry_write(partial(_export, plan, run_dir / RAW_FOLDER), run_dir)
        with evaluation_weights(trainer.module):
            retry_write(partial(_export, plan, run_dir / ENCODER_FOLDER), run_dir)
        log.info(
            "the encoder is in %s: fine-tune it with `kinemae finetune train CONFIG %s`",
            *(run_dir / ENCODER_FOLDER, as_override("encoder", run_dir / ENCODER_FOLDER)),
        )
    processes.barrier()
    return replace(plan, batch=trainer.plan)


@quick_imports()  # counting FLOPs imports torch._dynamo
def make_trainer(plan: Plan) -> Trainer:
    """Create the training loop."""
    config, clips = plan.config, training_clips(plan, plan.split)
    compiled = set_up_model(plan.model, config.engine, plan.processes, block_settings(config))
    return Trainer(
        module=with_average(plan.model, config.ema, steps=config.steps),
        groups=parameter_groups(plan.model, config.optim.weight_decay, muon_scale=config.optim.muon_scale),
        clips=clips,
        plan=plan.batch,
        auto=plan.auto,
        config=config,
        steps=config.steps,
        compiled=compiled,
        processes=plan.processes,
        callbacks=_callbacks(plan),
        step_flops=step_flops(config) if plan.processes.is_first else None,
    )


def training_clips(plan: Plan, split: Annotate) -> RunClips[Any]:
    """The clips of a run, annotated by `split`."""
    config = plan.config
    settings: dict[str, Any] = {
        "clip": config.clip,
        "augment": config.augment,
        "seed": config.seed,
        "views": config.data.views_per_video,
        "annotate": split,
        "needs_luma": plan.split.needs_luma,
    }
    if isinstance(plan.index, TarList):
        buffer = config.data.shuffle_buffer
        return StreamedClips(plan.index, buffer=buffer, uses_labels=False, **settings)
    videos_per_step = plan.batch.global_clips // config.data.views_per_video
    return TrainingClips(plan.index, order=plan.order, videos_per_step=videos_per_step, **settings)


def _callbacks(plan: Plan) -> tuple[Callback, ...]:
    """The callbacks of a run; they run on the first process."""
    callbacks: list[Callback] = [_reconstruction_logger(plan)] if plan.config.pictures.every_steps else []
    if plan.config.monitor.every_steps:
        callbacks.append(_representation_monitor(plan))
    return tuple(callbacks)


def _reconstruction_logger(plan: Plan) -> ReconstructionLogger:
    config = plan.config
    everything = replace(plan.split, predict_ratio=1.0, masks=1)  # pictures show all hidden tokens
    return ReconstructionLogger(
        model=plan.model,
        clips=training_clips(plan, everything),
        shown=clips_of_pictures(config),
        schedule=Schedule(every_steps=config.pictures.every_steps, last_step=config.steps - 1),
        folder=Path(config.run_dir) / "pictures",
    )


def clips_of_pictures(config: PretrainConfig, first: int = 0) -> range:
    """Select the clips to draw: from different videos, and from one step with equal token counts.

    Args:
        first: the first clip of the step.
    """
    clips = config.batch.global_clips
    count = min(config.pictures.clips, clips)
    apart = min(config.data.views_per_video, clips // count)
    return range(first, first + count * apart, apart)


def _representation_monitor(plan: Plan) -> RepresentationMonitor:
    config = plan.config
    clips = config.monitor.clips
    videos: Sequence[Iterable[EvaluationItem]]
    if isinstance(plan.index, TarList):
        settings: dict[str, Any] = {"clip": config.clip, "augment": NO_AUGMENTATION, "seed": config.seed}
        streamed = StreamedClips(plan.index, buffer=1, uses_labels=False, **settings)
        videos = [FirstVideos(clips=streamed, count=clips)]
    else:
        videos = spread_videos(plan.index, clips, clip=config.clip)
    return RepresentationMonitor(
        model=plan.model,
        videos=videos,
        pruning=plan.split.pruning,
        schedule=Schedule(every_steps=config.monitor.every_steps, last_step=config.steps - 1),
        probe=plan.probe,
    )


def _export(plan: Plan, folder: Path) -> None:
    config = plan.config
    trained_by = {
        "steps": config.steps,
        "global_clips": config.batch.global_clips,
        "shards": plan.index.fingerprint,
        "init_from": config.init_from,
    }
    description = describe_run_encoder(config, plan.model.encoder, trained_by)
    decoder = plan.model.decoder
    if decoder is not None:  # first: the encoder's description is the last file
        save_decoder(folder, decoder, describe_decoder(decoder, target=config.target))
    save_encoder(folder, plan.model.encoder, description)


def _open_data(config: PretrainConfig, processes: Processes) -> ShardIndex | SeveralSets | TarList:
    data = config.data
    assert data.sources is not None
    _, shards = data.sources
    if is_tars(data.shards):
        return _open_tars(config, processes)
    found = open_source(
        shards,
        where=data.where,
        weight=data.weight,
        cache=data.cache,
        check_shards=processes.is_first,
        outage_s=data.outage_s,
    )
    for index in data_sets(found):
        check_stride(index, config.clip)
    if data.where is not None and processes.is_first:
        log.info("data.where: %d samples match", len(found))
    return found


def _open_tars(config: PretrainConfig, processes: Processes) -> TarList:
    data = config.data
    assert data.shards is not None
    needs_index = {
        "data.where": data.where,
        "data.weight": data.weight,
        "data.cache_dir": data.cache_dir,
        "data.order.name": None if data.order.name == "random" else data.order.name,
        "loss_guard.spike_sigmas": config.loss_guard.spike_sigmas or None,
    }
    tars = open_tars(data.shards, outage_s=data.outage_s, needs_index=needs_index)
    if processes.is_first:
        tars.check_ends()
        log.info(
            "data.shards: %d tars are read in sequence, without an index; `%s` and data.shards=INDEX give an "
            "exact order: each sample once per epoch, the same batches after any restart",
            *(len(tars), index_command(location(data.shards), "INDEX")),
        )
    return tars


def _inputs(config: PretrainConfig, index: ShardIndex | SeveralSets | TarList) -> list[Input]:
    data, target = config.data, asdict(config.target)
    assert data.sources is not None
    found = data_inputs(data.sources[0], data.shards, index, data.mixture)
    return [*found, *encoder_inputs("init_from", config.init_from), *encoder_inputs("target", target)]


def _check_enough(index: ShardIndex | SeveralSets | TarList, config: PretrainConfig) -> None:
    if isinstance(index, TarList):  # which repeat
        return
    data = config.data
    assert data.sources is not None
    clips = len(index) * data.views_per_video
    if clips < config.batch.global_clips:
        raise DataError(
            f"{data.shards or data.sources[0]}: expected at least batch.global_clips="
            f"{config.batch.global_clips} clips, got {clips} ({len(index)} videos with data.views_per_video="
            f"{config.data.views_per_video}); fix: lower batch.global_clips, raise data.views_per_video, or "
            "add videos"
        )
