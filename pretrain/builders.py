"""From a config to the parts that it names, its masks and its model."""

from typing import NamedTuple

from kinemae.data_tools.components import build_part
from kinemae.pretrain.compatibility import check_combination
from kinemae.pretrain.config import PretrainConfig
from kinemae.pretrain.masking.base import Masking
from kinemae.pretrain.model.autoencoder import MaskedAutoencoder, build_autoencoder
from kinemae.pretrain.model.tokens import TokenGrid
from kinemae.pretrain.noise.base import Noise
from kinemae.pretrain.pruning.base import Pruning
from kinemae.pretrain.targets.base import Target
from kinemae.pretrain.token_selection import TokenSplit


class Parts(NamedTuple):
    """What a config names in one line each."""

    masking: Masking
    pruning: Pruning
    noise: Noise
    target: Target


def build_parts(config: PretrainConfig, grid: TokenGrid) -> Parts:
    """Build the parts and check that they go together.

    Raises:
        ValueError: a part that cannot be built, or two that do not go together.
    """
    masking = build_part("kinemae.pretrain.masking", config.masking, Masking)
    masking.counts(grid)
    parts = Parts(
        masking=masking,
        pruning=build_part("kinemae.pretrain.pruning", config.pruning, Pruning),
        noise=build_part("kinemae.pretrain.noise", config.noise, Noise),
        target=build_part("kinemae.pretrain.targets", config.target, Target),
    )
    check_combination(config.model, **parts._asdict())
    return parts


def token_split(config: PretrainConfig, grid: TokenGrid, parts: Parts) -> TokenSplit:
    """Which tokens of the run's clips are seen and predicted."""
    return TokenSplit(
        masking=parts.masking,
        grid=grid,
        patch=config.model.shape().encoder.patch,
        seed=config.seed,
        pruning=parts.pruning,
        clips_per_step=config.batch.global_clips,
        predict_share=config.model.predict_share,
        predict=config.model.predict,
    )


def build_model(
    config: PretrainConfig, grid: TokenGrid, parts: Parts, *, reference: TokenGrid | None = None
) -> MaskedAutoencoder:
    """The model of a run, with weights from PyTorch's generator; works on the meta device too.

    Args:
        reference: the grid of the weights that it is to be given, or None; see `build_autoencoder`.
    """
    return build_autoencoder(
        config.model,
        grid,
        target=parts.target,
        noise=parts.noise,
        pruning=parts.pruning,
        clips=config.steps * config.batch.global_clips,
        reference=reference,
    )
