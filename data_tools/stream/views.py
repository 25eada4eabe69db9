"""Views of a video: crops of its frames, resized directly into the memory of a batch.

OpenCV resizes planes in place and is by far the fastest resizer (docs/reading.md has the numbers). It
interpolates linearly. If a crop shrinks to less than half, linear interpolation would skip pixels and
flicker; then each pixel counts by its area.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
import torch

from kinemae.data_tools.stream.augment import AugmentConfig, Crop, random_crop
from kinemae.data_tools.stream.yuv_planes import YuvFrame
from kinemae.data_tools.stream.yuv_to_rgb import YuvClips

_MAX_LINEAR_SHRINK = 2.0


@dataclass(frozen=True, kw_only=True)
class View:
    """The part of a video that a clip shows: a crop with even edges, and a left-right flip."""

    crop: Crop
    flip: bool = False


def training_view(
    height: int, width: int, augment: AugmentConfig, generator: torch.Generator, *, may_flip: bool = True
) -> View:
    """Draw a random crop and flip of a frame.

    Args:
        may_flip: whether this video may be flipped; the crop and all later draws do not depend on it.
    """
    crop = random_crop(height, width, augment, generator)
    flip = augment.flip and torch.rand((), generator=generator).item() < 0.5
    return View(crop=even(crop), flip=flip and may_flip)


def evaluation_views(height: int, width: int, crops: int) -> list[View]:
    """The largest squares: 1 in the centre, or 3 from end to end along the longer side."""
    side = min(height, width)
    margin = max(height, width) - side
    views = []
    for start in [margin // 2] if crops == 1 else [0, margin // 2, margin]:
        top, left = (start, 0) if height > width else (0, start)
        views.append(View(crop=even(Crop(top=top, left=left, height=side, width=side))))
    return views


def centre_square(frame_HWC: np.ndarray, size: int) -> np.ndarray:
    """Crop the centre view of evaluation out of an RGB frame, and resize it."""
    height, width = frame_HWC.shape[:2]
    (view,) = evaluation_views(height, width, 1)
    crop = view.crop
    square_HWC = frame_HWC[crop.top : crop.top + crop.height, crop.left : crop.left + crop.width]
    return cv2.resize(square_HWC, (size, size), interpolation=_interpolation(crop.height / size))


def even(crop: Crop) -> Crop:
    """Round the edges of a crop to even pixels, on which chroma lies; the result is never empty."""
    return Crop(
        top=crop.top // 2 * 2,
        left=crop.left // 2 * 2,
        height=max(crop.height // 2 * 2, 1),
        width=max(crop.width // 2 * 2, 1),
    )


def crop_views(
    frames: Iterable[tuple[YuvFrame, list[int]]], choose: Callable[[int, int], list[View]], clips: YuvClips
) -> None:
    """Fill clips, one for each view, with frames as they are decoded; one frame is in memory at a time.

    Args:
        frames: decoded frames, each with its positions in the clip.
        choose: called once, with height and width of the frames in square pixels.
        clips: planes to fill.
    """
    if cv2.getNumThreads() > 1:
        cv2.setNumThreads(1)  # waking other threads for a single plane costs more than it saves
    memory = [clips.luma_BTHW.numpy(), *clips.chroma_BCTHW.numpy().swapaxes(0, 1)]
    crops: list[list[_PlaneCrop]] | None = None
    for frame, places in frames:
        if crops is None:
            crops = [_plane_crops(_stored(view, frame), memory) for view in choose(*frame.size)]
            clips.colour_BX[:] = torch.tensor(frame.colour, dtype=torch.int32)
        for clip, planes in enumerate(crops):
            for crop, plane, array in zip(planes, frame.planes, memory, strict=True):
                crop.write(plane, array[clip, places[0]])
                if len(places) > 1:
                    array[clip, places[1:]] = array[clip, places[0]]


def _stored(view: View, frame: YuvFrame) -> View:
    """Convert a view to stored pixels if these are not square; the resize makes them square."""
    width, (_, shown) = frame.planes[0].shape[1], frame.size
    if width == shown:
        return view
    crop = view.crop
    left, right = crop.left * width // shown, -(-(crop.left + crop.width) * width // shown)
    stored = Crop(top=crop.top, left=left, height=crop.height, width=min(right, width) - left)
    return View(crop=even(stored), flip=view.flip)


class _PlaneCrop(NamedTuple):
    """The crop of a view in one plane."""

    rows: slice
    columns: slice
    size: tuple[int, int]  # width and height, OpenCV's order
    interpolation: int
    flip: bool

    def write(self, plane: np.ndarray, out: np.ndarray) -> None:
        """Crop, resize and flip into memory in C order."""
        cv2.resize(plane[self.rows, self.columns], self.size, dst=out, interpolation=self.interpolation)
        if self.flip:
            cv2.flip(out, 1, dst=out)


def _plane_crops(view: View, memory: Sequence[np.ndarray]) -> list[_PlaneCrop]:
    crop, crops = view.crop, []
    for array, divisor in zip(memory, (1, 2, 2), strict=True):
        top, left = crop.top // divisor, crop.left // divisor
        bottom, right = -(-(crop.top + crop.height) // divisor), -(-(crop.left + crop.width) // divisor)
        height, width = array.shape[2:4]
        shrink = max((bottom - top) / height, (right - left) / width)
        how = _interpolation(shrink)
        crops.append(_PlaneCrop(slice(top, bottom), slice(left, right), (width, height), how, view.flip))
    return crops


def _interpolation(shrink: float) -> int:
    return cv2.INTER_LINEAR if shrink <= _MAX_LINEAR_SHRINK else cv2.INTER_AREA
