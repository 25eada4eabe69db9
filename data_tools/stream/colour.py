"""Colour augmentation on uint8 RGB with torchvision: colour jitter, RandAugment, random erasing.

One draw applies to all frames of a clip. Contrast, auto-contrast and equalize measure each frame separately,
as in VideoMAE. torchvision draws from torch's global generator, which is seeded for the clip and restored.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from kinemae.data_tools.config import require

_LEVELS = 10.0  # RandAugment's magnitudes run from 0 to 10
_STEPS_IN_A_LEVEL = 10
_FILL = 128.0  # grey, for areas that rotation and translation leave empty, as in timm
# ImageNet's, by which encoders normalize: then the noise has mean 0 and deviation 1.
_MEAN_C = (0.485, 0.456, 0.406)
_STD_C = (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class JitterConfig:
    """Colour jitter: each factor is drawn from [1 - value, 1 + value]; 0 switches it off.

    Attributes:
        probability: fraction of the clips whose colours change.
        brightness, contrast, saturation: the factor is drawn between 1 - value and 1 + value.
        hue: largest rotation of the hue, as a fraction of the colour circle, up to 0.5; the slowest factor.
        grayscale: fraction of all clips that become grayscale.
    """

    probability: float = 1.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    grayscale: float = 0.0

    def __post_init__(self) -> None:
        for name in ("brightness", "contrast", "saturation"):
            value = getattr(self, name)
            require(value >= 0, f"augment.jitter.{name}", "be 0 (off) or more", value)
        require(0 <= self.hue <= 0.5, "augment.jitter.hue", "lie between 0 (off) and 0.5", self.hue)
        _require_fraction("augment.jitter.probability", self.probability)
        _require_fraction("augment.jitter.grayscale", self.grayscale)

    @property
    def factors(self) -> dict[str, float]:
        """The four factors by torchvision's names."""
        return {name: getattr(self, name) for name in ("brightness", "contrast", "saturation", "hue")}


@dataclass(frozen=True, kw_only=True)
class RandAugmentConfig:
    """RandAugment (https://arxiv.org/abs/1909.13719) with torchvision's 14 operations.

    timm's "rand-m7-n4-mstd0.5-inc1", which VideoMAE fine-tunes with, is operations=4 and the defaults.

    Attributes:
        operations: number of operations; 0 is off.
        magnitude: mean magnitude, from 0 (no change) to 10.
        deviation: standard deviation of the magnitude.
        probability: probability of applying each drawn operation.
    """

    operations: int = 0
    magnitude: float = 7.0
    deviation: float = 0.5
    probability: float = 0.5

    def __post_init__(self) -> None:
        require(
            self.operations >= 0, "augment.rand_augment.operations", "be 0 (off) or more", self.operations
        )
        is_level = 0 <= self.magnitude <= _LEVELS
        require(is_level, "augment.rand_augment.magnitude", "lie between 0 and 10", self.magnitude)
        require(self.deviation >= 0, "augment.rand_augment.deviation", "be 0 or more", self.deviation)
        _require_fraction("augment.rand_augment.probability", self.probability)


@dataclass(frozen=True, kw_only=True)
class EraseConfig:
    """Random erasing (https://arxiv.org/abs/1708.04896): one box, the same in all frames.

    Attributes:
        probability: fraction of the clips with an erased box; 0 is off.
        min_area, max_area: area of the box as a fraction of the frame.
        min_aspect, max_aspect: height of the box divided by its width, log-uniform.
        mode: fill of the box: "noise", one image of normal noise, or "black".
    """

    probability: float = 0.0
    min_area: float = 0.02
    max_area: float = 0.3333
    min_aspect: float = 0.3
    max_aspect: float = 3.3333
    mode: Literal["noise", "black"] = "noise"

    def __post_init__(self) -> None:
        _require_fraction("augment.erase.probability", self.probability)
        area, aspect = (self.min_area, self.max_area), (self.min_aspect, self.max_aspect)
        keys = "augment.erase.min_area, augment.erase.max_area"
        require(0 < area[0] <= area[1] < 1, keys, "ascend within (0, 1)", area)
        keys = "augment.erase.min_aspect, augment.erase.max_aspect"
        require(0 < aspect[0] <= aspect[1], keys, "ascend from above 0", aspect)
        require(self.mode in ("noise", "black"), "augment.erase.mode", "be noise or black", self.mode)


@dataclass(frozen=True, kw_only=True)
class ColourConfig:
    """Colour augmentation, which needs RGB; off by default."""

    jitter: JitterConfig = field(default_factory=JitterConfig)
    rand_augment: RandAugmentConfig = field(default_factory=RandAugmentConfig)
    erase: EraseConfig = field(default_factory=EraseConfig)

    @property
    def changes_colour(self) -> bool:
        """True if any colour augmentation is on."""
        return self.jitters or self.rand_augment.operations > 0 or self.erase.probability > 0

    @property
    def jitters(self) -> bool:
        """True if colour jitter is on."""
        is_on = self.jitter.probability > 0 and any(self.jitter.factors.values())
        return is_on or self.jitter.grayscale > 0


def colour_augment(clip_TCHW: Tensor, colour: ColourConfig, generator: torch.Generator) -> Tensor:
    """Apply jitter, RandAugment and erasing as configured, the same for all frames.

    Args:
        clip_TCHW: uint8 RGB in its final size; it is not changed.
        generator: the clip's generator; one number is drawn from it for any config.

    Returns:
        A new clip_TCHW uint8, or the given one if nothing was changed.
    """
    with _global_generator(generator):
        if colour.jitters:
            clip_TCHW = _jittered(clip_TCHW, colour.jitter)
        for _ in range(colour.rand_augment.operations):
            clip_TCHW = _rand_augmented(clip_TCHW, colour.rand_augment)
        if _happens(colour.erase.probability):
            clip_TCHW = _erased(clip_TCHW, colour.erase)
    return clip_TCHW


@contextmanager
def _global_generator(generator: torch.Generator) -> Iterator[None]:
    """Seed torch's global CPU generator from the given one; restore its state at the end."""
    seed = int(torch.randint(2**63 - 1, (), generator=generator))
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would also seed CUDA.
        torch.default_generator.manual_seed(seed)
        yield


def _happens(probability: float) -> bool:
    return bool(torch.rand(()) < probability)


def _jittered(clip_TCHW: Tensor, jitter: JitterConfig) -> Tensor:
    transforms = _torchvision()
    if any(jitter.factors.values()) and _happens(jitter.probability):
        clip_TCHW = transforms.ColorJitter(**jitter.factors)(clip_TCHW)
    if _happens(jitter.grayscale):
        clip_TCHW = transforms.functional.rgb_to_grayscale(clip_TCHW, num_output_channels=3)
    return clip_TCHW


def _rand_augmented(clip_TCHW: Tensor, config: RandAugmentConfig) -> Tensor:
    """Apply one operation with the configured probability."""
    if not _happens(config.probability):
        return clip_TCHW
    level = float(torch.randn(())) * config.deviation + config.magnitude
    v2 = _torchvision()
    one = v2.RandAugment(
        num_ops=1,
        magnitude=round(min(max(level, 0.0), _LEVELS) * _STEPS_IN_A_LEVEL),
        num_magnitude_bins=int(_LEVELS) * _STEPS_IN_A_LEVEL + 1,
        interpolation=v2.InterpolationMode.BILINEAR,
        fill=_FILL,
    )
    return one(clip_TCHW)


def _erased(clip_TCHW: Tensor, erase: EraseConfig) -> Tensor:
    """Fill a box with the same content in all frames, because flickering noise would be motion."""
    drawn = _torchvision().RandomErasing(
        scale=(erase.min_area, erase.max_area), ratio=(erase.min_aspect, erase.max_aspect), value="random"
    )
    box = drawn.make_params([clip_TCHW])
    if box["v"] is None:  # ten boxes did not fit
        return clip_TCHW
    mean_C11, std_C11 = (torch.tensor(colour)[:, None, None] for colour in (_MEAN_C, _STD_C))
    noise_CHW = (255 * (mean_C11 + std_C11 * box["v"])).round().clamp(0, 255).to(torch.uint8)
    top, left, height, width = box["i"], box["j"], box["h"], box["w"]
    clip_TCHW = clip_TCHW.clone()
    clip_TCHW[..., top : top + height, left : left + width] = noise_CHW if erase.mode == "noise" else 0
    return clip_TCHW


def _torchvision() -> Any:
    # Imported here: it takes a second, and only fine-tuning uses it.
    from torchvision.transforms import v2

    return v2


def _require_fraction(key: str, value: float) -> None:
    require(0 <= value <= 1, key, "lie between 0 and 1", value)
