"""Views of a video: boxes cut from its pictures, resized straight into the memory of a batch.

OpenCV resizes planes where they lie, and is by far the fastest to do so (docs/reading.md has the numbers). It
interpolates linearly; where a box shrinks to less than half, that would pass over pixels and make them
flicker, so there each pixel counts by its area.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
import torch

from kinemae.data_tools.stream.augment import AugmentConfig, Crop, random_crop
from kinemae.data_tools.stream.yuv_planes import YuvFrame
from kinemae.data_tools.stream.yuv_to_rgb import Pixels, YuvClips

_MOST_LINEAR_SHRINK = 2.0


@dataclass(frozen=True, kw_only=True)
class View:
    """What one clip shows of a video: a box with even edges, perhaps mirrored left to right."""

    crop: Crop
    flip: bool = False


def training_view(height: int, width: int, augment: AugmentConfig, generator: torch.Generator) -> View:
    """A random box of a picture, mirrored at random."""
    crop = random_crop(height, width, augment, generator)
    flip = augment.flip and torch.rand((), generator=generator).item() < 0.5
    return View(crop=even(crop), flip=flip)


def evaluation_views(height: int, width: int, crops: int) -> list[View]:
    """Squares as large as fit: 1 in the centre, or 3 from end to end along the longer side.

    Raises:
        ValueError: another number of crops.
    """
    if crops not in (1, 3):
        raise ValueError(f"the number of spatial crops must be 1 or 3, got {crops}")
    side = min(height, width)
    room = max(height, width) - side
    views = []
    for start in [room // 2] if crops == 1 else [0, room // 2, room]:
        top, left = (start, 0) if height > width else (0, start)
        views.append(View(crop=even(Crop(top=top, left=left, height=side, width=side))))
    return views


def even(crop: Crop) -> Crop:
    """The box with its edges on even pixels, where those of the colours lie; never empty."""
    return Crop(
        top=crop.top // 2 * 2,
        left=crop.left // 2 * 2,
        height=max(crop.height // 2 * 2, 1),
        width=max(crop.width // 2 * 2, 1),
    )


def crop_views(
    pictures: Iterable[tuple[YuvFrame, list[int]]],
    choose: Callable[[int, int], list[View]],
    pixels: Pixels,
) -> None:
    """Fill clips, one for each view, with pictures as they come; only one picture is held at a time.

    Args:
        pictures: with the frames of a clip that each one is.
        choose: called once, with height and width of the pictures in square pixels.
        pixels: the clips to fill; RGB in (B, T, H, W, C) memory.
    """
    if cv2.getNumThreads() > 1:
        cv2.setNumThreads(1)  # waking others for a single plane costs more than it saves
    memory = _arrays(pixels)
    cuts: list[list[_Cut]] | None = None
    for picture, places in pictures:
        if cuts is None:
            cuts = [_cuts(_stored(view, picture), memory) for view in choose(*picture.size)]
            _set_colour(pixels, picture)
        for clip, planes in enumerate(cuts):
            for cut, plane, array in zip(planes, picture.planes, memory, strict=True):
                cut.write(plane, array[clip, places[0]])
                if len(places) > 1:
                    array[clip, places[1:]] = array[clip, places[0]]


def _stored(view: View, picture: YuvFrame) -> View:
    """A view's box in stored pixels, where those are not square; resizing it makes them so."""
    width, (_, shown) = picture.planes[0].shape[1], picture.size
    if width == shown:
        return view
    crop = view.crop
    left, right = crop.left * width // shown, -(-(crop.left + crop.width) * width // shown)
    stored = Crop(top=crop.top, left=left, height=crop.height, width=min(right, width) - left)
    return View(crop=even(stored), flip=view.flip)


def _set_colour(pixels: Pixels, picture: YuvFrame) -> None:
    if isinstance(pixels, YuvClips):
        pixels.colour_BX[:] = torch.tensor(picture.colour, dtype=torch.int32)


def _arrays(pixels: Pixels) -> list[np.ndarray]:
    """The memory of the planes of all clips, each (B, T, ...)."""
    if isinstance(pixels, YuvClips):
        return [pixels.luma_BTHW.numpy(), *pixels.chroma_BCTHW.numpy().swapaxes(0, 1)]
    return [pixels.permute(0, 2, 3, 4, 1).numpy()]


class _Cut(NamedTuple):
    """What a view takes of one plane of every picture."""

    rows: slice
    columns: slice
    size: tuple[int, int]  # width and height, as OpenCV has them
    interpolation: int
    flip: bool

    def write(self, plane: np.ndarray, out: np.ndarray) -> None:
        """Cut, resize and mirror into memory in C order."""
        cv2.resize(plane[self.rows, self.columns], self.size, dst=out, interpolation=self.interpolation)
        if self.flip:
            cv2.flip(out, 1, dst=out)


def _cuts(view: View, memory: Sequence[np.ndarray]) -> list[_Cut]:
    """The parts of a view: one for each plane."""
    crop, cuts = view.crop, []
    for array, divisor in zip(memory, (1, 2, 2), strict=False):
        top, left = crop.top // divisor, crop.left // divisor
        bottom, right = -(-(crop.top + crop.height) // divisor), -(-(crop.left + crop.width) // divisor)
        height, width = array.shape[2:4]
        shrink = max((bottom - top) / height, (right - left) / width)
        how = cv2.INTER_LINEAR if shrink <= _MOST_LINEAR_SHRINK else cv2.INTER_AREA
        cuts.append(_Cut(slice(top, bottom), slice(left, right), (width, height), how, view.flip))
    return cuts
