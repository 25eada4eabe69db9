"""Temporal head: one output per time slice."""

from typing import ClassVar

from torch import Tensor, nn

from kinemae.data_tools.config import require
from kinemae.data_tools.randomness import ClipRandom
from kinemae.finetune.heads.base import Features, Head, drop_values
from kinemae.finetune.layers.slice_features import SlicePool, hidden_width_of, time_block


class TemporalHead(Head):
    """Pool each slice over space, then blocks over time and a linear layer.

    Args:
        width: values per token.
        outputs: number of values per slice, for example classes.
        pool: over the tokens of a slice: "mean", or "attention" with one learned query.
        depth: number of residual blocks over time; 0: each slice is classified alone. The reach of block i is
            2 ** i times that of the first, as in MS-TCN (arXiv 1903.01945).
        block: "convolution", or "attention" limited to the same reach.
        kernel: odd number of slices in the receptive field of the first block.
        hidden_width: values per slice in the blocks; null: the encoder's width.
        norm: of the pooled slices: "layer", or "standardize" with measured statistics.
        dropout: fraction of the values before the linear layer that are set to zero in training.
    """

    output: ClassVar[str] = "sequence"

    def __init__(  # noqa: PLR0913 - keyword-only
        self,
        *,
        width: int,
        outputs: int,
        pool: str = "mean",
        depth: int = 2,
        block: str = "convolution",
        kernel: int = 3,
        hidden_width: int | None = None,
        norm: str = "layer",
        dropout: float = 0.0,
    ):
        super().__init__()
        require(depth >= 0, "head.args.depth", "be 0 or more", depth)
        require(0 <= dropout < 1, "head.args.dropout", "lie in [0, 1)", dropout)
        self.dropout = dropout
        self.pool = SlicePool(width, pool=pool, norm=norm)
        self.needs_calibration = self.pool.needs_calibration
        hidden_width = hidden_width_of(hidden_width, width)
        self.input = nn.Identity() if hidden_width == width else nn.Linear(width, hidden_width)
        blocks = [time_block(block, hidden_width, kernel=kernel, dilation=2**i) for i in range(depth)]
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.LayerNorm(hidden_width, eps=1e-6) if depth else nn.Identity()
        self.linear = nn.Linear(hidden_width, outputs)
        nn.init.trunc_normal_(self.linear.weight, std=0.02)
        nn.init.zeros_(self.linear.bias)

    def calibrate(self, features: Features) -> None:
        self.pool.calibrate(features)

    def forward(self, features: Features, draws: ClipRandom | None) -> Tensor:
        x_BtW = self.norm(self.blocks(self.input(self.pool(features))))
        return self.linear(drop_values(x_BtW, self.dropout, draws, purpose="head/dropout"))
