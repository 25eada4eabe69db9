"""The noise itself as the target: denoising of the visible patches."""

import torch
from torch import Tensor

from kinemae.pretrain.model.sizes import EncoderShape
from kinemae.pretrain.targets.base import Prediction, Target, TargetInputs, squared_errors

EPS = 1e-6


class NoiseTarget(Target):
    """Predicts what noise added to the visible patches, by a linear layer on the encoder's tokens.

    Each clip's noise is divided by its own root mean square, as a diffusion model predicts noise of
    deviation 1 at every strength (arXiv 2006.11239, section 3.4): so a prediction of zeros has a loss of 1
    at every strength and for every kind of noise, which is what makes a weight beside other targets mean
    something. In the patches' own units, strong clips would decide alone. Noise too weak to be seen cannot
    be told from none: give the noise a `strength.min_level`.

    Alone, it needs no decoder. What noise did to frames or tokens does not count.
    """

    needs_noise = True

    def target_values(self, shape: EncoderShape) -> int:
        """See `Target.target_values`."""
        return 0

    def visible_values(self, shape: EncoderShape) -> int:
        """See `Target.visible_values`."""
        return shape.patch_values

    def losses(self, prediction: Prediction, inputs: TargetInputs) -> dict[str, Tensor]:
        """See `Target.losses`."""
        assert prediction.visible_BKP is not None and inputs.added_BKP is not None
        with torch.no_grad():
            added_BKP = inputs.added_BKP.float()
            size_B11 = added_BKP.square().mean(dim=(1, 2), keepdim=True).sqrt()
            target_BKP = added_BKP / (size_B11 + EPS)
        return {"loss": squared_errors(prediction.visible_BKP, target_BKP)}
