"""Build the components, the token selection and the model of a config."""

from typing import NamedTuple

from kinemae.data_tools.components import build_component
from kinemae.pretrain.config import PretrainConfig
from kinemae.pretrain.masking.base import Masking
from kinemae.pretrain.model.autoencoder import MaskedAutoencoder, build_autoencoder
from kinemae.pretrain.model.sizes import ModelConfig
from kinemae.pretrain.model.tokens import TokenGrid
from kinemae.pretrain.noise.base import Noise
from kinemae.pretrain.pruning.base import Pruning
from kinemae.pretrain.runtime.engine import BlockSettings
from kinemae.pretrain.targets.base import Target
from kinemae.pretrain.token_selection import TokenSelection


class Components(NamedTuple):
    """The components of a pretraining config."""

    masking: Masking
    pruning: Pruning
    noise: Noise
    target: Target


def build_components(config: PretrainConfig, grid: TokenGrid) -> Components:
    """Build the components and check that they are compatible.

    Raises:
        ValueError: an invalid component, or incompatible ones.
    """
    masking = build_component("kinemae.pretrain.masking", config.masking, Masking)
    masking.counts(grid)
    components = Components(
        masking=masking,
        pruning=build_component("kinemae.pretrain.pruning", config.pruning, Pruning),
        noise=build_component("kinemae.pretrain.noise", config.noise, Noise),
        target=build_component("kinemae.pretrain.targets", config.target, Target),
    )
    check_compatibility(config.model, **components._asdict())
    if config.batch.is_auto and components.target.uses_global_batch:
        raise ValueError(
            "batch.clips_per_device: expected a number with target.name=views, which compares the clips of "
            "the global batch and needs one micro-batch per step, got auto; fix: set batch.clips_per_device "
            "to batch.global_clips divided by the number of processes"
        )
    return components


def check_compatibility(
    model: ModelConfig, *, masking: Masking, pruning: Pruning, noise: Noise, target: Target
) -> None:
    """Check that the components of a pretraining run are compatible.

    Raises:
        ValueError: names the reason and the key to change.
    """
    if pruning.keep is None:
        raise ValueError(
            "pruning.args.keep must be a fraction above 0 and at most 1, got None: pretraining keeps a fixed "
            "number of tokens; only fine-tuning supports a number per clip"
        )
    if target.needs_noise and not noise.is_on_patches:
        raise ValueError(
            "target.name: expected noise on patches for this target, got none; fix: set noise.name=gaussian "
            "or another noise on patches"
        )
    if model.noise_conditioning and not noise.has_level:
        raise ValueError(
            "model.noise_conditioning must be false if the noise level does not differ between clips; "
            "fix: set noise.name=gaussian or another noise, with strength.min_level below 1"
        )
    if model.noise_conditioning and not target.target_values(model.shape().encoder):
        raise ValueError(
            "model.noise_conditioning must be false if the target needs no decoder; fix: choose another "
            "target.name, or combine it with a target for hidden tokens in target.name=weighted"
        )


def token_selection(config: PretrainConfig, grid: TokenGrid, components: Components) -> TokenSelection:
    """The token selection of a run."""
    return TokenSelection(
        masking=components.masking,
        grid=grid,
        patch=config.model.shape().encoder.patch,
        seed=config.seed,
        pruning=components.pruning,
        clips_per_step=config.batch.global_clips,
        masks=config.masks_per_clip,
        predict_ratio=config.model.predict_ratio,
        predict=config.model.predict,
    )


def build_model(
    config: PretrainConfig, grid: TokenGrid, components: Components, *, reference: TokenGrid | None = None
) -> MaskedAutoencoder:
    """The model of a run, initialized from PyTorch's generator; works on the meta device.

    Args:
        reference: the grid of the weights to be loaded, or None; see `build_autoencoder`.
    """
    return build_autoencoder(
        config.model,
        grid,
        target=components.target,
        noise=components.noise,
        pruning=components.pruning,
        clips=config.steps * config.batch.global_clips,
        reference=reference,
    )


def block_settings(config: PretrainConfig) -> BlockSettings:
    """The settings that decide whether the blocks of a run can be compiled."""
    return BlockSettings(merges=config.model.merge_per_block > 0)
