"""Two decoders that predict wanted tokens from the encoder's visible ones; the rest costs nothing."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from pretrain.model.blocks import Block, CrossBlock, init_weights, norm
from pretrain.model.positions import sine_positions
from pretrain.model.sizes import DecoderShape
from pretrain.model.tokens import TokenGrid

MLP_RATIO = 4


class Decoder(nn.Module, ABC):
    """What a decoder is: a module that predicts tokens of the grid from those that were seen."""

    @abstractmethod
    def forward(self, memory_BKD: Tensor, visible_BK: Tensor, wanted_BM: Tensor) -> Tensor:
        """Predict the wanted tokens' values.

        Args:
            memory_BKD: the encoder's tokens.
            visible_BK: which tokens of the grid those are.
            wanted_BM: which tokens to predict.

        Returns:
            prediction_BMP in the target's units.
        """


class SelfDecoder(Decoder):
    """VideoMAE's decoder (arXiv 2203.12602, section 3): self-attention over visible and wanted tokens.

    Predicting all hidden tokens is VideoMAE; predicting some is the dual masking of VideoMAE V2
    (arXiv 2303.16727, section 3.2), less its repeated decoding of visible tokens.

    Args:
        memory_width: the encoder's width.
        values: P, how many values a prediction has.
    """

    positions_ND: Tensor

    def __init__(self, shape: DecoderShape, grid: TokenGrid, *, memory_width: int, values: int):
        super().__init__()
        width = shape.width
        self.project = nn.Linear(memory_width, width, bias=False)
        self.mask_token_D = nn.Parameter(torch.zeros(width))
        self.blocks = nn.ModuleList(Block(width, shape.heads, MLP_RATIO * width) for _ in range(shape.depth))
        self.norm = norm(width)
        self.head = nn.Linear(width, values)
        self.register_buffer("positions_ND", sine_positions(grid, width), persistent=False)
        init_weights(self)
        nn.init.trunc_normal_(self.mask_token_D, std=0.02)

    def forward(self, memory_BKD: Tensor, visible_BK: Tensor, wanted_BM: Tensor) -> Tensor:
        """See `Decoder.forward`."""
        seen_BKD = self.project(memory_BKD) + self.positions_ND[visible_BK]
        asked_BMD = self.mask_token_D + self.positions_ND[wanted_BM]
        x_BND = torch.cat([seen_BKD, asked_BMD.to(seen_BKD.dtype)], dim=1)
        for block in self.blocks:
            x_BND = block(x_BND)
        return self.head(self.norm(x_BND[:, visible_BK.shape[1] :]))


class CrossDecoder(Decoder):
    """CrossMAE's decoder (arXiv 2401.14391): wanted queries look at the visible tokens, not at each other.

    So a token's prediction does not depend on which others are wanted, and any share of them can be
    asked for. Unlike CrossMAE all blocks read the encoder's last layer (no weighing of its layers), and
    the memory carries the decoder's positions, which a decoder this shallow otherwise has to dig out.

    Args:
        memory_width: the encoder's width.
        values: P, how many values a prediction has.
    """

    positions_ND: Tensor

    def __init__(self, shape: DecoderShape, grid: TokenGrid, *, memory_width: int, values: int):
        super().__init__()
        width = shape.width
        self.project = nn.Linear(memory_width, width, bias=False)
        self.norm_memory = norm(width)
        self.mask_token_D = nn.Parameter(torch.zeros(width))
        self.blocks = nn.ModuleList(
            CrossBlock(width, shape.heads, MLP_RATIO * width) for _ in range(shape.depth)
        )
        self.norm = norm(width)
        self.head = nn.Linear(width, values)
        self.register_buffer("positions_ND", sine_positions(grid, width), persistent=False)
        init_weights(self)
        nn.init.trunc_normal_(self.mask_token_D, std=0.02)

    def forward(self, memory_BKD: Tensor, visible_BK: Tensor, wanted_BM: Tensor) -> Tensor:
        """See `Decoder.forward`."""
        seen_BKD = self.norm_memory(self.project(memory_BKD) + self.positions_ND[visible_BK])
        x_BMD = self.mask_token_D + self.positions_ND[wanted_BM]
        for block in self.blocks:
            x_BMD = block(x_BMD, seen_BKD)
        return self.head(self.norm(x_BMD))
