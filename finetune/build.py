"""From the config to a classifier: which encoder, which clip, and that the two fit."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from kinemae.data_tools.command import CheckpointError
from kinemae.data_tools.randomness import derived_seed
from kinemae.data_tools.stream.loader import ClipConfig
from kinemae.finetune.classifier import Classifier
from kinemae.finetune.config import FinetuneClip, FinetuneConfig
from kinemae.finetune.heads.base import build_head
from kinemae.finetune.mixing import Mixer
from kinemae.pretrain.encoder_file import EncoderDescription, build_encoder, load_description, load_encoder
from kinemae.pretrain.model.sizes import ModelConfig
from kinemae.pretrain.model.tokens import TokenGrid


def describe_encoder(config: FinetuneConfig) -> EncoderDescription:
    """What the run's encoder is and which clips it sees, with the frames and the size that the run takes.

    Where these make another grid than the encoder was pretrained on, `reference` stays that one and the
    positions are resampled.

    Raises:
        CheckpointError: no exported encoder there, or the config asks for another than it is.
        ValueError: from scratch, and the config does not say what to build; or clips that are no whole
            number of patches; or pruning or merging that this encoder cannot do.
    """
    if config.encoder is None:
        return _with_pruning(config, _describe_from_scratch(config))
    description = load_description(Path(config.encoder))
    _refuse_another_encoder(config, description)
    frames = description.frames if config.clip.frames is None else config.clip.frames
    size = description.size if config.clip.size is None else config.clip.size
    grid = TokenGrid.of(frames, size, description.shape.patch)
    description = replace(description, **_which_frames(config.clip), frames=frames, size=size, grid=grid)
    if config.from_scratch:
        description = replace(description, trained_by={})
    return _with_pruning(config, description)


def clip_config(config: FinetuneConfig, description: EncoderDescription) -> ClipConfig:
    """The clips to cut for this encoder."""
    return ClipConfig(
        frames=description.frames,
        stride=description.stride,
        fps=description.fps,
        sampling=description.sampling,
        size=description.size,
        short_video=config.clip.short_video,
    )


def build_classifier(config: FinetuneConfig, description: EncoderDescription, *, classes: int) -> Classifier:
    """Build the model to train: the weights of a new part are a function of the seed.

    Raises:
        CheckpointError: the encoder's weights are not what its description says.
        ValueError: the head is not one that this encoder can have.
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
    return Classifier(
        config.token_reduction.apply(encoder, pruning),
        build_head(config.head, width=description.shape.width, classes=classes),
        pruning=pruning,
        freeze=config.freeze,
        label_smoothing=config.label_smoothing,
        mixer=Mixer(config.mix, views=config.data.views_per_video) if config.mix.is_on else None,
        mean=description.mean,
        std=description.std,
    )


def _with_pruning(config: FinetuneConfig, description: EncoderDescription) -> EncoderDescription:
    """The encoder as it will be: pruning may add weights to it, and its last norm may go."""
    shape = description.shape
    shape = replace(shape, final_norm=shape.final_norm and config.final_norm)
    pruning = config.token_reduction.build_pruning(shape, may_learn=not config.freeze)
    return replace(description, shape=pruning.shape(shape))


def _describe_from_scratch(config: FinetuneConfig) -> EncoderDescription:
    clip, model = config.clip, config.model
    wanted = {
        "model.size": model.size,
        "clip.frames": clip.frames,
        "clip.size": clip.size,
    }
    frames = _which_frames(clip)
    if "stride" not in frames:
        wanted["clip.stride (or clip.fps, or clip.sampling=uniform)"] = None
    unset = [key for key, value in wanted.items() if value is None]
    if unset:
        raise ValueError(
            f"encoder is null, so training starts from scratch and needs {', '.join(unset)}: set them"
        )
    assert model.size and clip.frames and clip.size
    shape = _bent(model.size, config).shape().encoder
    grid = TokenGrid.of(clip.frames, clip.size, shape.patch)
    return EncoderDescription(
        shape=shape,
        grid=grid,
        reference=grid,
        frames=clip.frames,
        size=clip.size,
        **frames,
    )


def _which_frames(clip: FinetuneClip) -> dict[str, Any]:
    """What the config says of stride, fps and sampling; nothing where the encoder's own are to hold."""
    if clip.stride is None and clip.fps is None and clip.sampling != "uniform":
        return {} if clip.sampling is None else {"sampling": clip.sampling}
    return {
        "stride": clip.stride or ClipConfig().stride,
        "fps": clip.fps,
        "sampling": clip.sampling or "dense",
    }


def _bent(size: str, config: FinetuneConfig) -> ModelConfig:
    model = config.model
    return ModelConfig(
        size=size,
        patch_frames=model.patch_frames,
        patch_size=model.patch_size,
        width=model.width,
        depth=model.depth,
    )


def _refuse_another_encoder(config: FinetuneConfig, description: EncoderDescription) -> None:
    shape = description.shape
    model = config.model
    pairs = {
        "model.patch_frames": (model.patch_frames, shape.patch[0]),
        "model.patch_size": (model.patch_size, shape.patch[1]),
        "model.width": (model.width, shape.width),
        "model.depth": (model.depth, shape.depth),
    }
    if model.size is not None:
        named = _bent(model.size, config).shape().encoder
        pairs[f"model.size={model.size}, that is width"] = (named.width, shape.width)
        pairs[f"model.size={model.size}, that is depth"] = (named.depth, shape.depth)
    differ = [
        f"{key} {given}, encoder {own}" for key, (given, own) in pairs.items() if given not in (None, own)
    ]
    if differ:
        raise CheckpointError(
            f"the encoder in {config.encoder} is not the one of the config ({'; '.join(differ)}): "
            "leave these keys null to take the encoder's own, or give another encoder"
        )
