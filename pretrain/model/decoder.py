"""Decoders: predict the target tokens from the encoder's visible tokens."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from kinemae.pretrain.model.attention.base import AttentionCache, build_attention
from kinemae.pretrain.model.blocks import Block, CrossBlock, init_weights, norm, run_block
from kinemae.pretrain.model.positions.base import build_positions
from kinemae.pretrain.model.sizes import DecoderShape
from kinemae.pretrain.model.token_positions import TokenPositions
from kinemae.pretrain.model.tokens import TokenGrid

MLP_RATIO = 4


class Decoder(nn.Module, ABC):
    """Base class of the decoders.

    Args:
        memory_width: width of the encoder.
        values: P, number of values per prediction.
        noise_conditioned: whether the level of each clip's noise is an input.
        reference: the grid of its first training, from which positions are resampled; None: `grid`.
    """

    def __init__(
        self,
        shape: DecoderShape,
        grid: TokenGrid,
        *,
        memory_width: int,
        values: int,
        noise_conditioned: bool = False,
        reference: TokenGrid | None = None,
    ):
        super().__init__()
        width = shape.width
        self.shape = shape
        self.grid = grid
        self.reference = reference or grid
        self.embed = nn.Linear(memory_width, width, bias=False)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = build_positions(
            shape.positions, width=width, heads=shape.heads, grid=grid, reference=self.reference
        )
        self.norm = norm(width)
        self.head = nn.Linear(width, values)
        # Zero: at first the noise level has no effect.
        self.noise_embed = nn.Parameter(torch.zeros(width)) if noise_conditioned else None
        self._build_blocks(shape)
        init_weights(self)
        nn.init.trunc_normal_(self.mask_token, std=0.02)

    @abstractmethod
    def _build_blocks(self, shape: DecoderShape) -> None:
        """Add the blocks of the decoder kind."""

    @abstractmethod
    def forward(
        self, memory_BKD: Tensor, visible_BK: Tensor, target_BM: Tensor, level_B: Tensor | None = None
    ) -> Tensor:
        """Predict the values of the target tokens.

        Args:
            memory_BKD: the encoder's tokens.
            visible_BK: grid indices of the encoder's tokens.
            target_BM: grid indices of the tokens to predict.
            level_B: noise level of each clip, 0 to 1; used if the decoder is noise-conditioned.

        Returns:
            prediction_BMP in the target's units.
        """

    def _embed_memory(self, memory_BKD: Tensor, visible_BK: Tensor) -> Tensor:
        """Project the encoder's tokens to the decoder's width and add positions."""
        seen_BKD = self.embed(memory_BKD)
        added = self.pos_embed(visible_BK)
        return seen_BKD if added is None else seen_BKD + added

    def _embed_queries(self, target_BM: Tensor, level_B: Tensor | None) -> Tensor:
        """Embed the target tokens: mask token, positions and noise level, as x_BMD."""
        token_11D, added = self.mask_token, self.pos_embed(target_BM)
        query_BMD = token_11D.expand(*target_BM.shape, -1) if added is None else token_11D + added
        if level_B is None or self.noise_embed is None:
            return query_BMD
        return query_BMD + level_B[:, None, None] * self.noise_embed


class SelfDecoder(Decoder):
    """VideoMAE's decoder (arXiv 2203.12602, section 3): self-attention over visible and target tokens.

    With all hidden tokens as targets it is VideoMAE's; with some of them it is the dual masking of VideoMAE
    V2 (arXiv 2303.16727, section 3.2).
    """

    def _build_blocks(self, shape: DecoderShape) -> None:
        kind = build_attention(shape.attention, key="model.decoder_attention")
        self.patterns = [kind.patterns(i) for i in range(shape.depth)]
        self.blocks = nn.ModuleList(
            Block(shape.width, shape.heads, MLP_RATIO * shape.width, attentions=len(patterns))
            for patterns in self.patterns
        )

    def forward(
        self, memory_BKD: Tensor, visible_BK: Tensor, target_BM: Tensor, level_B: Tensor | None = None
    ) -> Tensor:
        seen_BKD = self._embed_memory(memory_BKD, visible_BK)
        query_BMD = self._embed_queries(target_BM, level_B)
        x_BND = torch.cat([seen_BKD, query_BMD.to(seen_BKD.dtype)], dim=1)
        positions = TokenPositions(grid=self.grid, index_BN=torch.cat([visible_BK, target_BM], dim=1))
        attention_fns = AttentionCache(positions, x_BND.device)
        rotate = self.pos_embed.rotation(positions.indices(x_BND.device))
        for block, patterns in zip(self.blocks, self.patterns, strict=True):
            x_BND = run_block(block, x_BND, [attention_fns[pattern] for pattern in patterns], rotate)
        return self.head(self.norm(x_BND[:, visible_BK.shape[1] :]))


class CrossDecoder(Decoder):
    """CrossMAE's decoder (arXiv 2401.14391): target tokens attend to visible tokens, not to each other.

    A prediction does not depend on the other target tokens. Two differences to CrossMAE: all blocks use the
    encoder's last layer instead of a weighted sum of its layers, and the decoder's positions are added to the
    memory.
    """

    def _build_blocks(self, shape: DecoderShape) -> None:
        self.norm_memory = norm(shape.width)
        self.blocks = nn.ModuleList(
            CrossBlock(shape.width, shape.heads, MLP_RATIO * shape.width) for _ in range(shape.depth)
        )

    def forward(
        self, memory_BKD: Tensor, visible_BK: Tensor, target_BM: Tensor, level_B: Tensor | None = None
    ) -> Tensor:
        seen_BKD = self.norm_memory(self._embed_memory(memory_BKD, visible_BK))
        x_BMD = self._embed_queries(target_BM, level_B)
        rotations = [self.pos_embed.rotation(index) for index in (target_BM, visible_BK)]
        rotate = None if rotations[0] is None or rotations[1] is None else (rotations[0], rotations[1])
        for block in self.blocks:
            x_BMD = run_block(block, x_BMD, seen_BKD, rotate)
        return self.head(self.norm(x_BMD))


DECODERS: dict[str, type[Decoder]] = {"self": SelfDecoder, "cross": CrossDecoder}
"""Decoder classes by the value of `model.decoder`."""
