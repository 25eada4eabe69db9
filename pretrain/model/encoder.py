"""The encoder: what pretraining is for. It embeds and sees only the tokens it is given."""

import torch
from torch import Tensor, nn

from data_tools.randomness import ClipRandom
from pretrain.model.blocks import Block, init_weights, kept_branches, norm
from pretrain.model.positions import sine_positions
from pretrain.model.sizes import EncoderShape
from pretrain.model.tokens import TokenGrid


class Encoder(nn.Module):
    """A vision transformer over space-time patches with joint attention and fixed positions.

    Args:
        grid: the tokens of a full clip. No parameter depends on it.
        drop_path: chance that a clip skips a branch of the last block, growing linearly from 0 at the
            first (arXiv 1603.09382). Only in training mode.
    """

    positions_ND: Tensor

    def __init__(self, shape: EncoderShape, grid: TokenGrid, *, drop_path: float = 0.0):
        super().__init__()
        self.shape = shape
        self.grid = grid
        self.drop_path_rates = [drop_path * i / max(shape.depth - 1, 1) for i in range(shape.depth)]
        self.embed = nn.Linear(shape.patch_values, shape.width)
        self.blocks = nn.ModuleList(
            Block(shape.width, shape.heads, shape.mlp_width) for _ in range(shape.depth)
        )
        self.norm = norm(shape.width)
        self.register_buffer("positions_ND", sine_positions(grid, shape.width), persistent=False)
        init_weights(self)

    def forward(
        self, patches_BKP: Tensor, visible_BK: Tensor | None, draws: ClipRandom | None = None
    ) -> Tensor:
        """Encode the given patches.

        Args:
            patches_BKP: normalised patches, already gathered.
            visible_BK: which tokens of the grid they are; None for all of them, in order.
            draws: the clips' randomness; needed in training with drop path.

        Returns:
            tokens_BKD after the final norm.
        """
        positions = self.positions_ND if visible_BK is None else self.positions_ND[visible_BK]
        x_BKD = self.embed(patches_BKP.to(self.embed.weight.dtype)) + positions
        for i, block in enumerate(self.blocks):
            x_BKD = block(x_BKD, self._keep(i, draws, x_BKD.dtype))
        return self.norm(x_BKD)

    def _keep(self, i: int, draws: ClipRandom | None, dtype: torch.dtype) -> Tensor | None:
        rate = self.drop_path_rates[i]
        if not self.training or rate == 0:
            return None
        assert draws is not None, "drop path in training needs the clips' draws"
        return kept_branches(draws.uniform(f"drop_path/{i}", (2,)), rate).to(dtype)
