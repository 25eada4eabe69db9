"""Jitter of brightness, contrast and saturation of the encoder's input."""

from typing import Any

from torch import Tensor

from kinemae.data_tools.config import require
from kinemae.data_tools.randomness import ClipRandom
from kinemae.pretrain.model.tokens import COLOURS
from kinemae.pretrain.noise.base import Noise, Strength


class PhotometricNoise(Noise):
    """Changes brightness, contrast and saturation of a clip, equally in all frames.

    Acts on normalized values, so each value changes independently of other pixels and only visible patches
    are computed. Each amount is drawn uniformly from [-level, level] times the argument:

        x = x + saturation * (x - grey), grey being the mean of the pixel's three colours;
        x = x + contrast * x;
        x = x + brightness.

    In pixels p = mean + std * x of a colour, contrast c is mean + (1 + c) * (p - mean), and brightness adds
    b * std. Values are not clamped. Unlike this noise, `augment.jitter` also changes the target.

    Args:
        brightness, contrast, saturation: largest amounts at level 1.
        strength: see `Strength`.
    """

    def __init__(
        self,
        *,
        brightness: float = 0.4,
        contrast: float = 0.4,
        saturation: float = 0.4,
        strength: dict[str, Any] | None = None,
    ):
        require(brightness >= 0, "noise.args.brightness", "be 0 or more", brightness)
        for name, amount in {"contrast": contrast, "saturation": saturation}.items():
            require(0 <= amount <= 1, f"noise.args.{name}", "lie between 0 and 1", amount)
        self.brightness = brightness
        self.contrast = contrast
        self.saturation = saturation
        self.strength = Strength.read(strength)
        self.is_on_patches = brightness + contrast + saturation > 0

    def on_patches(self, patches_BKP: Tensor, level_B: Tensor, draws: ClipRandom, **_: Any) -> Tensor:
        amount_B3 = level_B[:, None] * (2 * draws.uniform("noise/photometric", (3,)) - 1)
        brightness, contrast, saturation = amount_B3[..., None, None, None].unbind(1)
        x_BKXC = patches_BKP.float().unflatten(2, (-1, COLOURS))
        x_BKXC = x_BKXC + self.saturation * saturation * (x_BKXC - x_BKXC.mean(dim=3, keepdim=True))
        x_BKXC = x_BKXC + self.contrast * contrast * x_BKXC
        x_BKXC = x_BKXC + self.brightness * brightness
        return x_BKXC.flatten(2).to(patches_BKP.dtype)
