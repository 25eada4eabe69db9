"""Open a pretrained model for pictures: a run, one of its checkpoints, or an exported encoder."""

import shlex
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from kinemae.data_tools.command import CheckpointError
from kinemae.data_tools.components import Component, build_component
from kinemae.data_tools.config import load_config
from kinemae.pretrain.builders import Components, build_components, token_selection
from kinemae.pretrain.checkpoint_encoder import is_checkpoint, load_checkpoint_model
from kinemae.pretrain.config import PretrainConfig
from kinemae.pretrain.exported_model import EncoderDescription, has_decoder, load_decoder, load_encoder
from kinemae.pretrain.folder_kinds import (
    FINETUNING,
    MODEL,
    PRETRAINING,
    exported_in,
    kind_of_folder,
    kind_of_run,
)
from kinemae.pretrain.masking.base import Masking
from kinemae.pretrain.model.autoencoder import MaskedAutoencoder
from kinemae.pretrain.model.decoder import Decoder
from kinemae.pretrain.model.encoder import Encoder
from kinemae.pretrain.noise.none import NoNoise
from kinemae.pretrain.pruning.base import Pruning
from kinemae.pretrain.pruning.none import NoPruning
from kinemae.pretrain.runtime.checkpoint_files import list_checkpoints
from kinemae.pretrain.targets.base import Target
from kinemae.pretrain.token_selection import TokenSelection
from kinemae.pretrain.visualize.reconstruction import Reconstruction
from kinemae.pretrain.visualize.views import Subject


@dataclass(frozen=True, kw_only=True, eq=False)
class PretrainedModel:
    """An encoder, with what is known of its pretraining.

    Attributes:
        decoder: None if there is none.
        target: the target of the decoder.
        config: of the pretraining run; None outside of a run.
    """

    encoder: Encoder
    description: EncoderDescription
    decoder: Decoder | None = None
    target: Component | None = None
    config: PretrainConfig | None = None

    @property
    def pruning(self) -> Pruning | None:
        """The pruning of the pretraining."""
        if self.config is None:
            return None
        return build_component("kinemae.pretrain.pruning", self.config.pruning, Pruning)


def open_pretrained_model(folder: Path) -> PretrainedModel:
    """Open a run, one of its checkpoints, or an exported encoder. A run without an encoder has checkpoints.

    Raises:
        CheckpointError: none of these, or a damaged one.
    """
    kind = kind_of_folder(folder)
    if kind in (FINETUNING, MODEL):
        fix = f"kinemae finetune visualize {shlex.quote(str(folder))} SOURCE OUT"
        raise CheckpointError(f"{folder}: expected a pretraining run or an encoder, got {kind}; fix: {fix}")
    run_dir = folder if kind == PRETRAINING else folder.parents[1] if is_checkpoint(folder) else folder.parent
    is_of_run = kind_of_run(run_dir) == PRETRAINING
    config = load_config(PretrainConfig, run_dir / "config.yaml", []) if is_of_run else None
    if kind == PRETRAINING:
        folder = exported_in(folder) or _newest_checkpoint(folder, config)
    if is_checkpoint(folder):
        encoder, decoder, description = load_checkpoint_model(folder)
        assert config is not None, "a checkpoint lies in a run"
        return PretrainedModel(
            encoder=encoder, description=description, decoder=decoder, target=config.target, config=config
        )
    encoder, description = load_encoder(folder)
    if not has_decoder(folder):
        return PretrainedModel(encoder=encoder, description=description, config=config)
    decoder, of_decoder = load_decoder(folder)
    return PretrainedModel(
        encoder=encoder, description=description, decoder=decoder, target=of_decoder.target, config=config
    )


def _newest_checkpoint(run_dir: Path, config: PretrainConfig | None) -> Path:
    checkpoints = list_checkpoints(run_dir / "checkpoints")
    if not checkpoints:
        place = None if config is None else config.save_to
        fix = "train it first" if place is None else f"copy one from {place} to checkpoints/step-NUMBER there"
        raise CheckpointError(
            f"{run_dir}: expected a run with an encoder or a checkpoint, got one without; fix: {fix}"
        )
    return checkpoints[max(checkpoints)]


def subject_of(encoder: Encoder, description: EncoderDescription, device: torch.device) -> Subject:
    """An encoder that gets all tokens of a clip."""
    encoder = encoder.to(device).eval().requires_grad_(False)

    def run(clip_1CTHW: Tensor) -> Tensor:
        patches_1NP = encoder.patches(clip_1CTHW, mean=description.mean, std=description.std)
        tokens_1ND: Tensor = encoder(patches_1NP, None)
        return tokens_1ND

    return Subject(encoder=encoder, run=run, mean=description.mean, std=description.std)


def reconstruction_of(
    model: PretrainedModel, *, masking: Component | None, seed: int, device: torch.device
) -> Reconstruction | str:
    """The reconstruction by the model's decoder, or the reason why there is none.

    Args:
        masking: None for that of the pretraining, or "tube" if it is not known.
    """
    if model.decoder is None or model.target is None:
        return "the folder has no decoder: it has one if the target of the pretraining needs one"
    try:
        components, selection = _components(model, model.target, masking, seed)
        autoencoder = MaskedAutoencoder(
            model.encoder,
            model.decoder,
            target=components.target,
            noise=components.noise,
            clips=1 if model.config is None else model.config.steps * model.config.batch.global_clips,
            mean=model.description.mean,
            std=model.description.std,
            keep=components.pruning.keep if components.pruning.is_learned else None,
        )
    except (ValueError, CheckpointError) as error:
        if masking is not None:
            raise
        return f"the parts of the pretraining cannot be built: {error}"
    # Masks and noise as at the end of the run. All windows have one masking, so that their columns are equal.
    step = 0 if model.config is None else model.config.steps - 1
    view = Reconstruction(
        model=autoencoder.to(device).eval().requires_grad_(False),
        selection=replace(selection, masking=selection.masking.at(step)),
        first_clip=step * selection.clips_per_step,
    )
    return view if view.has_prediction else f"the target {model.target.name} predicts no pixels"


def _components(
    model: PretrainedModel, target: Component, masking: Component | None, seed: int
) -> tuple[Components, TokenSelection]:
    """The components of the pretraining; without a run only masking and target are known."""
    grid, patch = model.encoder.grid, model.encoder.shape.patch
    if model.config is not None:
        config = replace(model.config, masking=masking or model.config.masking, target=target, seed=seed)
        components = build_components(config, grid)
        return components, replace(token_selection(config, grid, components), predict_ratio=1.0, masks=1)
    components = Components(
        masking=build_component("kinemae.pretrain.masking", masking or Component(name="tube"), Masking),
        pruning=NoPruning(),
        noise=NoNoise(),
        target=build_component("kinemae.pretrain.targets", target, Target),
    )
    components.masking.counts(grid)
    return components, TokenSelection(masking=components.masking, grid=grid, patch=patch, seed=seed)
