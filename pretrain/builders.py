"""From a config to the parts that it names, its masks and its model."""

from typing import NamedTuple

from kinemae.data_tools.components import build_component
from kinemae.pretrain.compatibility import check_compatibility
from kinemae.pretrain.config import PretrainConfig
from kinemae.pretrain.masking.base import Masking
from kinemae.pretrain.model.autoencoder import MaskedAutoencoder, build_autoencoder
from kinemae.pretrain.model.tokens import TokenGrid
from kinemae.pretrain.noise.base import Noise
from kinemae.pretrain.pruning.base import Pruning
from kinemae.pretrain.targets.base import Target
from kinemae.pretrain.token_selection import TokenSelection


class Components(NamedTuple):
    """What a config names in one line each."""

    masking: Masking
    pruning: Pruning
    noise: Noise
    target: Target


def build_components(config: PretrainConfig, grid: TokenGrid) -> Components:
    """Build the parts and check that they go together.

    Raises:
        ValueError: a part that cannot be built, or two that do not go together.
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
    return components


def token_selection(config: PretrainConfig, grid: TokenGrid, components: Components) -> TokenSelection:
    """Which tokens of the run's clips are seen and predicted."""
    return TokenSelection(
        masking=components.masking,
        grid=grid,
        patch=config.model.shape().encoder.patch,
        seed=config.seed,
        pruning=components.pruning,
        clips_per_step=config.batch.global_clips,
        predict_ratio=config.model.predict_ratio,
        predict=config.model.predict,
    )


def build_model(
    config: PretrainConfig, grid: TokenGrid, components: Components, *, reference: TokenGrid | None = None
) -> MaskedAutoencoder:
    """The model of a run, with weights from PyTorch's generator; works on the meta device too.

    Args:
        reference: the grid of the weights that it is to be given, or None; see `build_autoencoder`.
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
