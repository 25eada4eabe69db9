"""Conversion of decoded frames to a clip of a model."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kinemae.data_tools.stream.frame_sampling import ClipConfig
from kinemae.data_tools.stream.views import centre_square
from kinemae.pretrain.model.tokens import COLOURS


@dataclass(frozen=True, kw_only=True)
class ClipTransform:
    """Crop the largest square in the centre of each frame and resize it, as in evaluation.

    Pixels are not normalized: the model does this with `mean` and `std`.

    Attributes:
        clip: frames, stride or frame rate, and size of a clip.
        mean, std: normalization of pixels in the model, RGB on a scale of 0 to 1.
    """

    clip: ClipConfig
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def frames(self) -> int:
        """Number of frames of a clip."""
        return self.clip.frames

    @property
    def size(self) -> int:
        """Height and width of a clip in pixels."""
        return self.clip.size

    @property
    def stride(self) -> int | None:
        """Distance of the frames in frames of the video; None with `fps`, or if a clip is a whole video."""
        return self.clip.stride if self.fps is None and self.clip.sampling == "dense" else None

    @property
    def fps(self) -> float | None:
        """Frames of a clip per second; None with `stride`, or if a clip is a whole video."""
        return self.clip.fps

    def __call__(self, frames: np.ndarray | Tensor) -> Tensor:
        """Convert the frames of one clip.

        Args:
            frames: uint8 RGB of shape (T, H, W, C) or (T, C, H, W), with the T frames of a clip.

        Returns:
            clip_CTHW, uint8.

        Raises:
            ValueError: another shape, type or number of frames.
        """
        pixels = frames.cpu().numpy() if isinstance(frames, Tensor) else np.asarray(frames)
        if pixels.ndim == 4 and pixels.shape[3] != COLOURS and pixels.shape[1] == COLOURS:
            pixels = pixels.transpose(0, 2, 3, 1)
        if pixels.ndim != 4 or pixels.shape[3] != COLOURS or pixels.dtype != np.uint8:
            raise ValueError(
                "frames: expected uint8 of shape (T, H, W, 3) or (T, 3, H, W), got "
                f"{pixels.dtype} of shape {pixels.shape}; fix: pass decoded RGB frames"
            )
        if len(pixels) != self.frames:
            raise ValueError(
                f"frames: expected the {self.frames} frames of a clip, got {len(pixels)}; fix: select them, "
                "or read them with kinemae.read_clip(PATH, model.clip)"
            )
        clip_THWC = np.stack([centre_square(frame_HWC, self.size) for frame_HWC in pixels])
        return torch.from_numpy(clip_THWC).permute(3, 0, 1, 2)
