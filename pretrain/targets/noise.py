"""Noise target: the noise added to the visible patches (denoising)."""

import torch
from torch import Tensor

from kinemae.pretrain.model.sizes import EncoderShape
from kinemae.pretrain.targets.base import Prediction, Target, TargetInputs, squared_errors

EPS = 1e-6


class NoiseTarget(Target):
    """Predicts the noise added to the visible patches with a linear layer on the encoder's tokens.

    The noise of each clip is divided by its root mean square, as in diffusion models (arXiv 2006.11239,
    section 3.4), so a prediction of zeros has a loss of 1 at every level. Weak noise cannot be detected: set
    `strength.min_level`. This target needs no decoder, and ignores noise on frames and tokens.
    """

    needs_noise = True

    def target_values(self, shape: EncoderShape) -> int:
        return 0

    def visible_values(self, shape: EncoderShape) -> int:
        return shape.patch_values

    def losses(self, prediction: Prediction, inputs: TargetInputs) -> dict[str, Tensor]:
        assert prediction.visible_BKP is not None and inputs.added_BKP is not None
        with torch.no_grad():
            added_BKP = inputs.added_BKP.float()
            size_B11 = added_BKP.square().mean(dim=(1, 2), keepdim=True).sqrt()
            target_BKP = added_BKP / (size_B11 + EPS)
        return {"loss": squared_errors(prediction.visible_BKP, target_BKP).mean(dim=(1, 2))}
