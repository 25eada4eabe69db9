"""Reconstruction of a video by a trained masked autoencoder, window by window."""

from dataclasses import dataclass

import torch
from torch import Tensor

from kinemae.data_tools.stream.batch import ClipBatch
from kinemae.data_tools.stream.yuv_to_rgb import to_luma
from kinemae.pretrain.clip_grid import Column
from kinemae.pretrain.model.autoencoder import MaskedAutoencoder
from kinemae.pretrain.model.tokens import COLOURS
from kinemae.pretrain.reconstructions import reconstruction_columns
from kinemae.pretrain.token_selection import TokenSelection
from kinemae.pretrain.visualize.views import View, Window


@dataclass(frozen=True, kw_only=True, eq=False)
class Reconstruction(View):
    """The columns of `pretrain/reconstructions.py` with the error of each pixel.

    Attributes:
        selection: with all hidden tokens as targets.
        first_clip: number of the run's clip whose mask and noise the first window gets.
    """

    model: MaskedAutoencoder
    selection: TokenSelection
    first_clip: int

    name = "reconstruction"
    title = "Reconstruction"
    text = (
        "The prediction of the hidden patches by the trained decoder, with the masks and the noise of the "
        "pretraining. The error is the difference of the prediction to the clip in grey levels of 0 to 255."
    )

    @property
    def has_prediction(self) -> bool:
        """True if the target has pictures."""
        encoder = self.model.encoder
        patch, grid = encoder.shape.patch, encoder.grid
        size = (grid.t * patch[0], grid.h * patch[1], grid.w * patch[2])
        black_1CTHW = torch.zeros(
            (1, COLOURS, *size), dtype=torch.uint8, device=encoder.patch_embed.weight.device
        )
        with torch.no_grad():
            return any(column.title == "prediction" for column in self._columns(black_1CTHW, self.first_clip))

    def columns(self, window: Window) -> list[Column]:
        """See `View.columns`."""
        return self._columns(window.clip_1CTHW, self.first_clip + window.number)

    def _columns(self, clip_1CTHW: Tensor, clip_index: int) -> list[Column]:
        tokens = self.selection(to_luma(clip_1CTHW)[0].cpu(), clip_index)
        device = clip_1CTHW.device
        batch = ClipBatch(
            pixels=clip_1CTHW,
            clip_index_B=torch.tensor([clip_index], device=device),
            label_B=torch.tensor([-1], device=device),
            weight_B=torch.ones(1, device=device),
            tokens={name: index_K[None].to(device) for name, index_K in tokens.items()},
        )
        return reconstruction_columns(self.model, batch, seed=self.selection.seed, errors=True)
