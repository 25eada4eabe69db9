"""A batch of clips with its labels, weights and index lists."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from kinemae.data_tools.stream.yuv_to_rgb import Pixels, map_pixels, on_device, to_rgb


@dataclass(frozen=True, kw_only=True)
class SkippedClip:
    """A clip whose video could not be read: its key and the reason."""

    key: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class ClipBatch:
    """A micro-batch of B clips.

    Attributes:
        pixels: planes from the loader; RGB after `to` or colour augmentation.
        clip_index_B: int64, the clip's position in the run, which keys all its random draws.
        label_B: int64, NO_LABEL for none.
        weight_B: float32, 1 for a clip, 0 for a skipped one. A skipped clip keeps its position and has
            zeros as pixels, so shapes and all other clips do not change.
        tokens: index lists from the caller's `annotate`, for example "visible" of shape (B, K).
        targets: what a task learns from these clips, each tensor with the clips as its first dim.
        sample_B: int64, the sample's position in the index of its data set.
        time_BT: float64, timestamps of the frames in seconds from the start of the sample; NaN if skipped.
        flipped_B: bool, whether the clip was flipped left to right.
        keys: the samples' keys, in order.
        skipped: the reasons of the clips with weight 0.
        columns: values of each clip that a stream of tars adds.
        tars_done: numbers of the tars of a stream whose last sample is in this batch, see `tar_list`.
    """

    pixels: Pixels
    clip_index_B: Tensor
    label_B: Tensor
    weight_B: Tensor
    tokens: dict[str, Tensor] = field(default_factory=dict)
    targets: dict[str, Tensor] = field(default_factory=dict)
    sample_B: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    time_BT: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.float64))
    flipped_B: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.bool))
    keys: tuple[str, ...] = ()
    skipped: tuple[SkippedClip, ...] = ()
    columns: dict[str, list[Any]] = field(default_factory=dict)
    tars_done: tuple[int, ...] = ()

    @property
    def clip_BCTHW(self) -> Tensor:
        """The clips as uint8 RGB; before `to`, each access converts them."""
        return to_rgb(self.pixels)

    def pin_memory(self) -> "ClipBatch":
        """Copy the batch to page-locked memory."""
        return self._map(torch.Tensor.pin_memory)

    def to(self, device: torch.device, *, convert: Callable[[Pixels], Tensor] = to_rgb) -> "ClipBatch":
        """Move every tensor, asynchronously from pinned memory, and convert the clips to RGB there."""
        clip_BCTHW = on_device(self.pixels, device, convert=convert)
        return replace(self, pixels=clip_BCTHW)._map(lambda tensor: tensor.to(device, non_blocking=True))

    def _map(self, function: Callable[[Tensor], Tensor]) -> "ClipBatch":
        return replace(
            self,
            pixels=map_pixels(function, self.pixels),
            clip_index_B=function(self.clip_index_B),
            label_B=function(self.label_B),
            weight_B=function(self.weight_B),
            tokens={name: function(tensor) for name, tensor in self.tokens.items()},
            targets={name: function(tensor) for name, tensor in self.targets.items()},
            sample_B=function(self.sample_B),
            time_BT=function(self.time_BT),
            flipped_B=function(self.flipped_B),
        )
