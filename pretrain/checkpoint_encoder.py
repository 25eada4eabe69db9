"""Encoders and decoders in the checkpoints of a pretraining run, before or without an export."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kinemae.data_tools.command import CheckpointError
from kinemae.data_tools.config import load_config
from kinemae.pretrain.builders import build_components, build_model
from kinemae.pretrain.config import PretrainConfig
from kinemae.pretrain.exported_model import EncoderDescription, load_description
from kinemae.pretrain.folder_kinds import PRETRAINING, kind_of_folder
from kinemae.pretrain.model.autoencoder import MaskedAutoencoder
from kinemae.pretrain.model.decoder import Decoder
from kinemae.pretrain.model.encoder import Encoder
from kinemae.pretrain.model.tokens import TokenGrid
from kinemae.pretrain.runtime.checkpoint_reader import CheckpointDamage, CheckpointReader
from kinemae.pretrain.runtime.checkpoint_storage import FolderStorage
from kinemae.pretrain.runtime.processes import Processes
from kinemae.pretrain.runtime.tensor_shards import whole_weight
from kinemae.pretrain.runtime.weight_average import WeightAverage


def describe_run_encoder(
    config: PretrainConfig, encoder: Encoder, trained_by: Mapping[str, Any]
) -> EncoderDescription:
    """Describe the encoder of a pretraining run and its clips."""
    return EncoderDescription(
        shape=encoder.shape,
        grid=encoder.grid,
        reference=encoder.reference,
        mean=tuple(config.model.mean),
        std=tuple(config.model.std),
        frames=config.clip.frames,
        stride=config.clip.stride,
        fps=config.clip.fps,
        sampling=config.clip.sampling,
        size=config.clip.size,
        trained_by=dict(trained_by),
    )


def is_checkpoint(folder: Path) -> bool:
    """Check whether a folder is a complete checkpoint, such as RUN/checkpoints/step-00001000."""
    return folder.name.startswith("step-") and (folder / "manifest.json").is_file()


def describe_checkpoint_encoder(folder: Path) -> EncoderDescription:
    """Describe the encoder of a checkpoint from the config of its run, without reading weights.

    Raises:
        CheckpointError: the folder is not a checkpoint inside a pretraining run.
    """
    run_dir = folder.parent.parent
    kind = kind_of_folder(run_dir)
    if kind != PRETRAINING:
        raise CheckpointError(
            f"{folder}: expected a checkpoint in the folder checkpoints/ of a pretraining run, got {kind} at "
            f"{run_dir}; fix: give RUN/checkpoints/step-NUMBER of a pretraining run, or an exported encoder"
        )
    config = _config(folder)
    with torch.device("meta"):
        model = _build(config)
    trained_by = {"checkpoint": folder.name, "steps": config.steps, "init_from": config.init_from}
    return describe_run_encoder(config, model.encoder, trained_by)


def load_checkpoint_encoder(
    folder: Path, *, grid: TokenGrid | None = None
) -> tuple[Encoder, EncoderDescription]:
    """Load the encoder of a checkpoint.

    Args:
        grid: the tokens of a full clip if they differ from the pretraining; positions are resampled.

    Raises:
        CheckpointError: the folder is not a checkpoint inside a pretraining run, or it is damaged.
        Stuck: a file cannot be read.
    """
    description = describe_checkpoint_encoder(folder)
    encoder = Encoder(description.shape, grid or description.grid, reference=description.reference)
    _read_parameters(folder, {"encoder.": encoder})
    return encoder, description


def load_checkpoint_model(folder: Path) -> tuple[Encoder, Decoder | None, EncoderDescription]:
    """Load encoder and decoder of a checkpoint; see `load_checkpoint_encoder`."""
    description = describe_checkpoint_encoder(folder)
    model = _build(_config(folder))
    modules: dict[str, nn.Module] = {"encoder.": model.encoder}
    if model.decoder is not None:
        modules["decoder."] = model.decoder
    _read_parameters(folder, modules)
    return model.encoder, model.decoder, description


def _config(folder: Path) -> PretrainConfig:
    """The config of a checkpoint's run."""
    return load_config(PretrainConfig, folder.parent.parent / "config.yaml", [])


def _stored_names(config: PretrainConfig) -> dict[str, str]:
    """Map the model's parameters to their names in a checkpoint: of the moving average if there is one."""
    if not config.ema.decay:
        return {}
    with torch.device("meta"):
        average = WeightAverage(_build(config), decay=config.ema.decay, steps=config.steps)
    return average.stored_names()


def _build(config: PretrainConfig) -> MaskedAutoencoder:
    """Build the model of a run, with initial weights."""
    grid = TokenGrid.of(config.clip.frames, config.clip.size, config.model.shape().encoder.patch)
    reference = None if config.init_from is None else load_description(Path(config.init_from)).reference
    return build_model(config, grid, build_components(config, grid), reference=reference)


def _read_parameters(folder: Path, modules: Mapping[str, nn.Module]) -> None:
    """Read the parameters of modules, by the prefix of their names in the model."""
    names = _stored_names(_config(folder))
    parameters = {
        names.get(prefix + name, prefix + name): parameter
        for prefix, module in modules.items()
        for name, parameter in module.named_parameters()
    }
    try:
        storage, alone = FolderStorage(folder.parent), Processes(rank=0, world=1, device=torch.device("cpu"))
        reader = CheckpointReader(storage, folder, alone)
        for stored, parameter in parameters.items():
            shape = reader.metadata.shapes.get(stored)
            if shape != tuple(parameter.shape):
                raise CheckpointError(
                    f"{folder}: expected {stored} of shape {tuple(parameter.shape)}, got {shape}; "
                    "fix: use the version that wrote the run"
                )
        reader.fill([whole_weight(stored, parameter) for stored, parameter in parameters.items()])
    except CheckpointDamage as damage:
        raise CheckpointError(
            f"{folder}: expected an intact checkpoint, got damage: {damage}; fix: remove it"
        ) from damage
