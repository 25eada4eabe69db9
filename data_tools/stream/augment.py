"""What is done to the frames of a clip, the same to all of them, uint8 in and out.

Cropping is slicing, so only the pixels of the crop are resized; resizing is torch's antialiased bilinear
filter on uint8, which is what torchvision's `resized_crop` calls. Frames come in (T, H, W, C) memory, the
layout that filter is fastest on.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from data_tools.config import require

_ATTEMPTS = 10


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Random resized crop and flip.

    Attributes:
        min_scale, max_scale: share of the frame's area that a crop covers.
        min_aspect, max_aspect: width of a crop divided by its height, log-uniform.
        flip: mirror half of the clips left to right; switch it off where direction is what is learnt.
    """

    min_scale: float = 0.5
    max_scale: float = 1.0
    min_aspect: float = 0.75
    max_aspect: float = 1.3333
    flip: bool = True

    def __post_init__(self) -> None:
        scale = (self.min_scale, self.max_scale)
        aspect = (self.min_aspect, self.max_aspect)
        require(
            0 < scale[0] <= scale[1] <= 1,
            "augment.min_scale, augment.max_scale",
            "ascend within (0, 1]",
            scale,
        )
        require(
            0 < aspect[0] <= aspect[1],
            "augment.min_aspect, augment.max_aspect",
            "ascend from above 0",
            aspect,
        )


@dataclass(frozen=True, kw_only=True)
class Crop:
    """A box in pixels."""

    top: int
    left: int
    height: int
    width: int


def random_crop(height: int, width: int, augment: AugmentConfig, generator: torch.Generator) -> Crop:
    """A box of random area and aspect inside a frame.

    As torchvision's RandomResizedCrop: ten attempts, then the largest centred box with an allowed aspect.
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
    return _centred(height, width, crop_height, crop_width)


def training_view(
    frames_TCHW: Tensor, size: int, augment: AugmentConfig, generator: torch.Generator
) -> Tensor:
    """One randomly cropped, resized and perhaps mirrored clip_CTHW of the frames."""
    height, width = frames_TCHW.shape[-2:]
    crop = random_crop(height, width, augment, generator)
    clip_TCHW = resized_crop(frames_TCHW, crop, (size, size))
    if augment.flip and torch.rand((), generator=generator).item() < 0.5:
        clip_TCHW = clip_TCHW.flip(-1)
    return clip_TCHW.transpose(0, 1)


def evaluation_views(frames_TCHW: Tensor, size: int, crops: int) -> Tensor:
    """Fixed views of the frames: the short side resized to `size`, then square crops.

    Args:
        crops: 1 for the centre, 3 for both ends and the centre along the longer side.

    Returns:
        views_VCTHW.

    Raises:
        ValueError: another number of crops.
    """
    if crops not in (1, 3):
        raise ValueError(f"the number of spatial crops must be 1 or 3, got {crops}")
    height, width = frames_TCHW.shape[-2:]
    short = min(height, width)
    resized = (size * height // short, size * width // short)
    resized_TCHW = resized_crop(frames_TCHW, Crop(top=0, left=0, height=height, width=width), resized)
    room = max(resized) - size
    views = []
    for start in [room // 2] if crops == 1 else [0, room // 2, room]:
        view_TCHW = resized_TCHW.narrow(2 if resized[0] > resized[1] else 3, start, size)
        views.append(view_TCHW.transpose(0, 1))
    return torch.stack(views)


def resized_crop(frames_TCHW: Tensor, crop: Crop, size: tuple[int, int]) -> Tensor:
    """Cut the box out of every frame and resize it to (height, width)."""
    box_TCHW = frames_TCHW[..., crop.top : crop.top + crop.height, crop.left : crop.left + crop.width]
    if (crop.height, crop.width) == size:
        return box_TCHW
    return functional.interpolate(box_TCHW, size=size, mode="bilinear", antialias=True)


def _centred(height: int, width: int, crop_height: int, crop_width: int) -> Crop:
    top, left = (height - crop_height) // 2, (width - crop_width) // 2
    return Crop(top=top, left=left, height=crop_height, width=crop_width)
