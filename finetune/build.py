"""Build the model of a fine-tuning run from its config."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from kinemae.data_tools.randomness import derived_seed
from kinemae.data_tools.stream.loader import ClipConfig
from kinemae.finetune.adapt.freezing import freeze_first_blocks, starts_at, train_last_blocks
from kinemae.finetune.adapt.lora import add_adapters, clip_dropouts
from kinemae.finetune.config import FinetuneClip, FinetuneConfig
from kinemae.finetune.heads.base import build_head
from kinemae.finetune.mixing import Mixer
from kinemae.finetune.task_model import TaskModel
from kinemae.finetune.tasks.base import Task
from kinemae.pretrain.exported_model import (
    EncoderDescription,
    build_encoder,
    check_same_encoder,
    load_description,
    load_encoder,
    with_clip,
)
from kinemae.pretrain.model.sizes import EncoderShape, ModelConfig
from kinemae.pretrain.model.tokens import TokenGrid


def describe_encoder(config: FinetuneConfig) -> EncoderDescription:
    """Describe the run's encoder and its clips.

    If frames or size differ from those of the pretraining, `reference` stays the grid of the pretraining and
    positions are resampled.

    Raises:
        CheckpointError: no exported encoder in `encoder`, or one that differs from `model`.
        ValueError: a required key is missing, the clip is not a whole number of patches, or the encoder does
            not support the pruning or merging.
    """
    description = _describe_from_scratch(config) if config.encoder is None else _describe_exported(config)
    shape = replace(description.shape, final_norm=description.shape.final_norm and config.final_norm)
    pruning = config.token_reduction.build_pruning(shape, may_learn=config.adapt.trains_all)
    return replace(description, shape=pruning.shape(shape))


def clip_config(config: FinetuneConfig, description: EncoderDescription) -> ClipConfig:
    """Return the settings of the clips for this encoder."""
    return replace(
        description.clip,
        frames=description.frames * config.clip.chunks,
        short_video=config.clip.short_video,
    )


def build_model(config: FinetuneConfig, description: EncoderDescription, task: Task) -> TaskModel:
    """Build the model to train. New weights depend only on the seed.

    Raises:
        CheckpointError: the encoder's weights do not match its description.
        ValueError: the head does not fit the encoder.
    """
    torch.manual_seed(derived_seed(config.seed, purpose="weights"))
    if config.encoder is None or config.from_scratch:
        encoder = build_encoder(description, drop_path=config.drop_path)
    else:
        encoder, _ = load_encoder(Path(config.encoder), drop_path=config.drop_path, grid=description.grid)
        if encoder.shape.final_norm and not config.final_norm:
            encoder.norm = torch.nn.Identity()
            encoder.shape = replace(encoder.shape, final_norm=False)
    pruning = config.token_reduction.build_pruning(description.shape)
    model = TaskModel(
        config.token_reduction.apply(encoder, pruning),
        build_head(
            config.head,
            width=description.shape.width,
            outputs=task.outputs,
            output=task.output,
            groups=task.output_groups,
        ),
        task,
        pruning=pruning,
        freeze=config.adapt.freezes_encoder,
        chunks=config.clip.chunks,
        mixer=Mixer(config.mix, views=config.data.views_per_video) if config.mix.is_on else None,
        mean=description.mean,
        std=description.std,
    )
    _adapt(model, config)
    return model


def _adapt(model: TaskModel, config: FinetuneConfig) -> None:
    """Choose the trained weights of the encoder, or add adapters to it."""
    if config.adapt.blocks is not None:
        train_last_blocks(model.encoder, config.adapt.blocks)
    if config.adapt.freeze_blocks:
        freeze_first_blocks(model.encoder, config.adapt.freeze_blocks)
    starts_at(model.encoder, config.adapt.unfreeze_at)  # raises if there are too few blocks
    if config.adapt.has_adapters:
        add_adapters(model.encoder, config.adapt, seed=config.seed)
        model.dropouts = clip_dropouts(model.encoder)


def _describe_exported(config: FinetuneConfig) -> EncoderDescription:
    description = load_description(Path(str(config.encoder)))
    model, shape = config.model, description.shape
    pairs = {
        "model.patch_frames": (model.patch_frames, shape.patch[0]),
        "model.patch_size": (model.patch_size, shape.patch[1]),
        "model.width": (model.width, shape.width),
        "model.depth": (model.depth, shape.depth),
    }
    if model.size is not None:
        sized = _encoder_shape(config)
        pairs[f"model.size={model.size}, width"] = (sized.width, shape.width)
        pairs[f"model.size={model.size}, depth"] = (sized.depth, shape.depth)
    given = {key: pair for key, pair in pairs.items() if pair[0] is not None}
    check_same_encoder(f"encoder={config.encoder}", given)
    return with_clip(
        description,
        frames=config.clip.frames,
        size=config.clip.size,
        **frame_sampling(config.clip),
        trained_by={} if config.from_scratch else description.trained_by,
    )


def _describe_from_scratch(config: FinetuneConfig) -> EncoderDescription:
    clip = config.clip
    sampling = frame_sampling(clip)
    required = {
        "model.size": config.model.size,
        "clip.frames": clip.frames,
        "clip.size": clip.size,
        "clip.stride (or clip.fps, or clip.sampling=uniform)": sampling.get("stride"),
    }
    missing = [key for key, value in required.items() if value is None]
    if missing:
        raise ValueError(
            f"encoder: expected a folder, or null with {', '.join(missing)}, got null without; "
            "fix: set these keys to train from scratch"
        )
    assert clip.frames and clip.size
    shape = _encoder_shape(config)
    grid = TokenGrid.of(clip.frames, clip.size, shape.patch)
    return EncoderDescription(
        shape=shape, grid=grid, reference=grid, frames=clip.frames, size=clip.size, **sampling
    )


def frame_sampling(clip: FinetuneClip) -> dict[str, Any]:
    """Return the configured stride, fps and sampling; nothing for those of the encoder."""
    if clip.stride is None and clip.fps is None and clip.sampling != "uniform":
        return {} if clip.sampling is None else {"sampling": clip.sampling}
    return {
        "stride": clip.stride or ClipConfig().stride,
        "fps": clip.fps,
        "sampling": clip.sampling or "dense",
    }


def _encoder_shape(config: FinetuneConfig) -> EncoderShape:
    """Return the shape of `model.size` with the overrides in `model`."""
    assert config.model.size is not None
    return ModelConfig(**vars(config.model)).shape().encoder
