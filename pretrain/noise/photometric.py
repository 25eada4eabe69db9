"""Jitter of brightness, contrast and saturation, on what the encoder sees alone."""

from typing import Any

from torch import Tensor

from kinemae.data_tools.config import require
from kinemae.data_tools.randomness import ClipRandom
from kinemae.pretrain.model.token_positions import TokenPositions
from kinemae.pretrain.model.tokens import COLOURS, Patch
from kinemae.pretrain.noise.base import Noise, Strength


class PhotometricNoise(Noise):
    """Changes each clip's light and colours, all its frames alike; the target keeps the true ones.

    On normalised values, that is, around the data's mean colour and in units of its deviation, so that no
    pixel but the changed one matters and only visible ones cost. Each amount is drawn evenly between minus
    and plus the level times the argument:

        x = x + saturation * (x - grey), with grey the mean of the pixel's three colours;
        x = x + contrast * x;
        x = x + brightness.

    In pixels p = mean + std * x of a colour, contrast c is mean + (1 + c) * (p - mean), and brightness adds
    b * std. Nothing is cut off at black and white. `augment.jitter` is another thing: it changes the target
    too.

    Args:
        brightness, contrast, saturation: the greatest amounts at level 1.
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

    def on_patches(
        self,
        patches_BKP: Tensor,
        level_B: Tensor,
        draws: ClipRandom,
        *,
        positions: TokenPositions,
        patch: Patch,
    ) -> Tensor:
        """See `Noise.on_patches`."""
        turn_B3 = level_B[:, None] * (2 * draws.uniform("noise/photometric", (3,)) - 1)
        brightness, contrast, saturation = turn_B3[..., None, None, None].unbind(1)
        x_BKXC = patches_BKP.float().unflatten(2, (-1, COLOURS))
        x_BKXC = x_BKXC + self.saturation * saturation * (x_BKXC - x_BKXC.mean(dim=3, keepdim=True))
        x_BKXC = x_BKXC + self.contrast * contrast * x_BKXC
        x_BKXC = x_BKXC + self.brightness * brightness
        return x_BKXC.flatten(2).to(patches_BKP.dtype)
