"""From a config to a run: everything is built and checked before any process group starts."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from data_tools.command import DataError, log
from data_tools.index import ShardIndex, open_index
from data_tools.parts import build_part
from data_tools.stream.loader import TrainingClips
from data_tools.stream.mixture import Mixture, open_mixture
from data_tools.stream.order import BatchPlan, plan_batch
from data_tools.stream.workers import worker_count
from pretrain.config import PretrainConfig
from pretrain.encoder_file import EncoderDescription, save_encoder
from pretrain.masking.base import Masking, TokenSplit, wanted_count
from pretrain.model.autoencoder import MaskedAutoencoder, build_autoencoder
from pretrain.model.tokens import TokenGrid
from pretrain.noise.base import Noise
from pretrain.pictures import PictureBook
from pretrain.runtime.loop import Training
from pretrain.runtime.optimiser import parameter_groups
from pretrain.runtime.processes import Processes, find_processes
from pretrain.runtime.run_folder import check_run_dir, open_run_dir
from pretrain.targets.base import Target


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A config resolved and checked: what `--dry-run` shows and `run_pretraining` runs."""

    config: PretrainConfig
    processes: Processes
    index: ShardIndex | Mixture
    batch: BatchPlan
    split: TokenSplit
    model: MaskedAutoencoder
    continues: bool

    def summary(self) -> dict[str, object]:
        """The numbers a user wants to see before spending a cluster on them."""
        grid, config = self.split.grid, self.config
        visible, hidden = self.split.masking.counts(grid)
        return {
            "run_dir": config.run_dir,
            "continues": self.continues,
            "samples": len(self.index),
            "steps": config.steps,
            "epochs": self._epochs(),
            "global_clips": self.batch.global_clips,
            "processes": self.batch.world,
            "clips_per_process_at_once": self.batch.micro_clips,
            "accumulation": self.batch.accumulation,
            "tokens": grid.tokens,
            "visible_tokens": visible,
            "predicted_tokens": wanted_count(hidden, config.model.predict_share),
            "encoder_parameters": sum(parameter.numel() for parameter in self.model.encoder.parameters()),
            "parameters": sum(parameter.numel() for parameter in self.model.parameters()),
        }

    def _epochs(self) -> float | dict[str, float]:
        """How often each video is shown; in a mixture, those of each set."""
        videos = self.config.steps * self.batch.global_clips / self.config.data.views_per_video
        if isinstance(self.index, Mixture):
            return {name: round(epochs, 2) for name, epochs in self.index.epochs(videos).items()}
        return round(videos / len(self.index), 2)


def make_plan(config: PretrainConfig) -> Plan:
    """Resolve and check a config. Starts nothing and writes nothing.

    Raises:
        ValueError: the config cannot be run; the message names the key.
        DataError: the shards cannot be used.
    """
    processes = find_processes(config.engine.device)
    patch = config.model.shape().encoder.patch
    grid = TokenGrid.of(config.clip.frames, config.clip.size, patch)
    masking = build_part("pretrain.masking", config.masking, Masking)
    masking.counts(grid)
    noise = build_part("pretrain.noise", config.noise, Noise)
    target = build_part("pretrain.targets", config.target, Target)
    batch = plan_batch(
        config.batch.global_clips,
        config.batch.clips_per_device,
        world=processes.world,
        views=config.data.views_per_video,
    )
    # The first process alone: it may already have opened the folder when another one looks.
    continues = processes.is_first and check_run_dir(Path(config.run_dir), config)
    index = _open_data(config)
    _check_enough(index, config)
    torch.manual_seed(config.seed)
    return Plan(
        config=config,
        processes=processes,
        index=index,
        batch=batch,
        split=TokenSplit(
            masking=masking, grid=grid, seed=config.seed, predict_share=config.model.predict_share
        ),
        model=build_autoencoder(config.model, grid, target=target, noise=noise),
        continues=continues,
    )


def run_pretraining(plan: Plan) -> None:
    """Train, then export the encoder to `RUN/encoder`."""
    config, processes = plan.config, plan.processes
    if processes.is_first:
        open_run_dir(Path(config.run_dir), config)
    training = Training(
        module=plan.model,
        groups=parameter_groups(plan.model, config.optim.weight_decay),
        clips=_clips(plan, plan.split),
        plan=plan.batch,
        settings=config.run_settings(worker_count(config.data.workers, processes.local_world)),
        processes=processes,
        watcher=_picture_book(plan),
    )
    training.run()
    if processes.is_first:
        _export(plan)
    processes.wait_for_all()


def _clips(plan: Plan, split: TokenSplit) -> TrainingClips:
    config = plan.config
    return TrainingClips(
        plan.index,
        clip=config.clip,
        augment=config.augment,
        seed=config.seed,
        views=config.data.views_per_video,
        decoder=config.data.decoder,
        annotate=split,
    )


def _picture_book(plan: Plan) -> PictureBook | None:
    config = plan.config
    if not config.pictures.every_steps or not plan.processes.is_first:
        return None
    everything = replace(plan.split, predict_share=1.0)  # pictures show all that is hidden
    return PictureBook(
        model=plan.model,
        clips=_clips(plan, everything),
        count=config.pictures.clips,
        every_steps=config.pictures.every_steps,
        last_step=config.steps - 1,
        folder=Path(config.run_dir) / "pictures",
    )


def _export(plan: Plan) -> None:
    config = plan.config
    folder = Path(config.run_dir) / "encoder"
    trained_by = {
        "steps": config.steps,
        "global_clips": config.batch.global_clips,
        "shards": plan.index.fingerprint,
    }
    description = EncoderDescription(
        shape=plan.model.encoder.shape,
        grid=plan.split.grid,
        frames=config.clip.frames,
        stride=config.clip.stride,
        fps=config.clip.fps,
        sampling=config.clip.sampling,
        size=config.clip.size,
        trained_by=trained_by,
    )
    save_encoder(folder, plan.model.encoder, description)
    log.info(
        "the encoder is in %s: fine-tune it with `python -m finetune train CONFIG encoder=%s`", folder, folder
    )


def _open_data(config: PretrainConfig) -> ShardIndex | Mixture:
    data = config.data
    if data.mixture is not None:
        return open_mixture(data.mixture, cache=data.cache)
    assert data.shards is not None
    return open_index(data.shards, cache=data.cache)


def _check_enough(index: ShardIndex | Mixture, config: PretrainConfig) -> None:
    clips = len(index) * config.data.views_per_video
    if clips < config.batch.global_clips:
        raise DataError(
            f"{config.data.shards or 'data.mixture'} holds {len(index)} videos, which make {clips} clips "
            f"with data.views_per_video={config.data.views_per_video}: fewer than batch.global_clips="
            f"{config.batch.global_clips}; lower it, or add videos"
        )
