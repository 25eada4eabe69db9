"""Data augmentation of a clip: random crop and flip; `colour` has the rest."""

import math
from dataclasses import dataclass, field
from typing import Literal

import torch

from kinemae.data_tools.config import require
from kinemae.data_tools.stream.colour import ColourConfig

_ATTEMPTS = 10
# Rows and columns of a 5 x 5 grid of positions of a crop: every second one, and the quarters' centres.
_PLACES = [(row, column) for row in range(5) for column in range(5) if row % 2 == column % 2]


@dataclass(frozen=True, kw_only=True)
class AugmentConfig(ColourConfig):
    """Crop and flip, and the colour augmentation of `ColourConfig`.

    Attributes:
        crop: "resized" draws area and aspect of the crop; "multi_scale" draws height and width from `scales`.
        min_scale, max_scale: area of a "resized" crop as a fraction of the frame.
        min_aspect, max_aspect: width of a "resized" crop divided by its height, log-uniform.
        scales: height and width of a "multi_scale" crop as fractions of the short side, descending.
        flip: flip half of the clips left to right; switch it off if the direction of motion is the label.
    """

    crop: Literal["resized", "multi_scale"] = "resized"
    min_scale: float = 0.5
    max_scale: float = 1.0
    min_aspect: float = 0.75
    max_aspect: float = 1.3333
    scales: list[float] = field(default_factory=lambda: [1.0, 0.875, 0.75, 0.66])
    flip: bool = True

    def __post_init__(self) -> None:
        scale = (self.min_scale, self.max_scale)
        aspect = (self.min_aspect, self.max_aspect)
        keys = "augment.min_scale, augment.max_scale"
        require(0 < scale[0] <= scale[1] <= 1, keys, "ascend within (0, 1]", scale)
        keys = "augment.min_aspect, augment.max_aspect"
        require(0 < aspect[0] <= aspect[1], keys, "ascend from above 0", aspect)
        is_known = self.crop in ("resized", "multi_scale")
        require(is_known, "augment.crop", "be resized or multi_scale", self.crop)
        falls = self.scales == sorted(self.scales, reverse=True) and all(0 < one <= 1 for one in self.scales)
        require(bool(self.scales) and falls, "augment.scales", "fall within (0, 1]", self.scales)


NO_AUGMENTATION = AugmentConfig(min_scale=1, min_aspect=1, max_aspect=1, flip=False)
"""The largest square in the centre."""


@dataclass(frozen=True, kw_only=True)
class Crop:
    """A crop in pixels."""

    top: int
    left: int
    height: int
    width: int


def random_crop(height: int, width: int, augment: AugmentConfig, generator: torch.Generator) -> Crop:
    """Draw a crop by the method of `augment.crop`."""
    if augment.crop == "multi_scale":
        return _multi_scale_crop(height, width, augment.scales, generator)
    return _resized_crop_box(height, width, augment, generator)


def _resized_crop_box(height: int, width: int, augment: AugmentConfig, generator: torch.Generator) -> Crop:
    """Draw a crop of random area and aspect.

    As torchvision's RandomResizedCrop: ten attempts, then the largest centred crop with an allowed aspect.
    """
    draws = torch.rand(_ATTEMPTS, 4, generator=generator, dtype=torch.float64).tolist()
    low, high = math.log(augment.min_aspect), math.log(augment.max_aspect)
    for area_draw, aspect_draw, top_draw, left_draw in draws:
        area = height * width * (augment.min_scale + area_draw * (augment.max_scale - augment.min_scale))
        aspect = math.exp(low + aspect_draw * (high - low))
        crop_width, crop_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            top = int(top_draw * (height - crop_height + 1))
            left = int(left_draw * (width - crop_width + 1))
            return Crop(top=top, left=left, height=crop_height, width=crop_width)
    crop_width = min(width, max(round(height * augment.max_aspect), 1))
    crop_height = min(height, max(round(width / augment.min_aspect), 1))
    top, left = (height - crop_height) // 2, (width - crop_width) // 2
    return Crop(top=top, left=left, height=crop_height, width=crop_width)


def _multi_scale_crop(height: int, width: int, scales: list[float], generator: torch.Generator) -> Crop:
    """Draw a crop whose sides are neighbouring scales of the short side, at one of 13 positions.

    VideoMAE's and TSN's MultiScaleCrop (https://arxiv.org/abs/1608.00859): corners, centre, middles of the
    edges, and the centres of the quarters.
    """
    sides = [max(int(min(height, width) * scale), 1) for scale in scales]
    pairs = [(i, j) for i in range(len(sides)) for j in range(len(sides)) if abs(i - j) <= 1]
    pair, place = torch.rand(2, generator=generator, dtype=torch.float64).tolist()
    i, j = pairs[int(pair * len(pairs))]
    down, right = _PLACES[int(place * len(_PLACES))]
    top, left = down * ((height - sides[i]) // 4), right * ((width - sides[j]) // 4)
    return Crop(top=top, left=left, height=sides[i], width=sides[j])
