"""What travels from the stream to the model: one batch of clips with everything that belongs to it."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from kinemae.data_tools.stream.yuv_to_rgb import Pixels, map_pixels, on_device, to_rgb


@dataclass(frozen=True, kw_only=True)
class SkippedClip:
    """A clip whose video could not be read: its key and why."""

    key: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class ClipBatch:
    """A micro-batch of B clips.

    Attributes:
        pixels: planes, as they travel; RGB after `to`, or where augmentation or the decoder made it so.
        clip_index_B: int64, the clip's place in the run; every draw of chance for the clip is keyed by it.
        label_B: int64, NO_LABEL where there is none.
        weight_B: float32, 1 for a clip, 0 for one that was skipped. A skipped clip keeps its place, its
            pixels are zero and it counts for nothing, so that shapes and all other clips stay as they are.
        tokens: index lists that the caller's `annotate` added, for example "visible" of shape (B, K).
        keys: the samples' keys, in order.
        skipped: why clips have weight 0.
    """

    pixels: Pixels
    clip_index_B: Tensor
    label_B: Tensor
    weight_B: Tensor
    tokens: dict[str, Tensor] = field(default_factory=dict)
    keys: tuple[str, ...] = ()
    skipped: tuple[SkippedClip, ...] = ()

    @property
    def clip_BCTHW(self) -> Tensor:
        """The clips as uint8 RGB: at hand after `to`, converted at each call before."""
        return to_rgb(self.pixels)

    def pin_memory(self) -> "ClipBatch":
        """The batch in page-locked memory."""
        return self._map(torch.Tensor.pin_memory)

    def to(self, device: torch.device) -> "ClipBatch":
        """Move every tensor, without waiting for pinned ones, and make the clips RGB there."""
        clip_BCTHW = on_device(self.pixels, device)
        return replace(self, pixels=clip_BCTHW)._map(lambda tensor: tensor.to(device, non_blocking=True))

    def _map(self, function: Callable[[Tensor], Tensor]) -> "ClipBatch":
        return replace(
            self,
            pixels=map_pixels(function, self.pixels),
            clip_index_B=function(self.clip_index_B),
            label_B=function(self.label_B),
            weight_B=function(self.weight_B),
            tokens={name: function(tensor) for name, tensor in self.tokens.items()},
        )
