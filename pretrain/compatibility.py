"""Which parts go together: what cannot work is refused before anything starts, with the reason."""

from kinemae.pretrain.masking.base import Masking
from kinemae.pretrain.model.sizes import ModelConfig
from kinemae.pretrain.noise.base import Noise
from kinemae.pretrain.pruning.base import Pruning
from kinemae.pretrain.targets.base import Target


def check_compatibility(
    model: ModelConfig, *, masking: Masking, pruning: Pruning, noise: Noise, target: Target
) -> None:
    """Refuse parts of a pretraining run that do not go together.

    Raises:
        ValueError: why, and which key to change.
    """
    if pruning.keep is None:
        raise ValueError(
            "pruning.args.keep must be a share above 0 and at most 1, got None: pretraining keeps a fixed "
            "number of tokens; only fine-tuning may let it differ from clip to clip"
        )
    if target.needs_noise and not noise.is_on_patches:
        raise ValueError(
            "target.name: this target is what noise adds to the patches, and the noise of this config adds "
            "nothing to them: set noise.name=gaussian, or another that does"
        )
    if model.noise_conditioning and not noise.has_level:
        raise ValueError(
            "model.noise_conditioning must be false where the noise has no strength that differs from clip "
            "to clip: set noise.name=gaussian, or another that has, and its strength.min_level below 1"
        )
    if model.noise_conditioning and not target.target_values(model.shape().encoder):
        raise ValueError(
            "model.noise_conditioning must be false where the target needs no decoder that could be told: "
            "choose another target.name, or weigh it together with one about hidden tokens"
        )
