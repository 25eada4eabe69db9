"""MLP head: pooled tokens, a norm, hidden layers and a linear layer."""

from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional

from kinemae.data_tools.config import require
from kinemae.data_tools.randomness import ClipRandom
from kinemae.finetune.heads.base import (
    Features,
    Head,
    Standardize,
    drop_values,
    input_norm,
    pool_tokens,
)


class MlpHead(Head):
    """Hidden layers with GELU on pooled tokens. One hidden layer separates classes that a line cannot.

    Args:
        width: values per token.
        outputs: number of values per clip, for example classes.
        hidden_layers: number of hidden layers.
        hidden_width: values of each hidden layer; null: `width`.
        pool: "mean" or "statistics", see the linear head.
        norm: "layer" or "standardize", see the linear head.
        dropout: fraction of the values of each hidden layer set to zero in training.
    """

    def __init__(  # noqa: PLR0913 - keyword-only
        self,
        *,
        width: int,
        outputs: int,
        hidden_layers: int = 1,
        hidden_width: int | None = None,
        pool: str = "mean",
        norm: str = "layer",
        dropout: float = 0.0,
    ):
        super().__init__()
        require(pool in ("mean", "statistics"), "head.args.pool", "be mean or statistics", pool)
        require(hidden_layers >= 1, "head.args.hidden_layers", "be at least 1", hidden_layers)
        is_width = hidden_width is None or (isinstance(hidden_width, int) and hidden_width > 0)
        require(is_width, "head.args.hidden_width", "be null or at least 1", hidden_width)
        require(0 <= dropout < 1, "head.args.dropout", "lie in [0, 1)", dropout)
        self.pool = pool
        self.dropout = dropout
        self.needs_calibration = norm == "standardize"
        pooled_width = width if pool == "mean" else 2 * width
        hidden_width = hidden_width or width
        widths = [pooled_width, *[hidden_width] * hidden_layers]
        self.norm = input_norm(norm, pooled_width)
        self.hidden = nn.ModuleList(nn.Linear(*pair) for pair in pairwise(widths))
        self.linear = nn.Linear(hidden_width, outputs)
        for layer in (*self.hidden, self.linear):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)

    def calibrate(self, features: Features) -> None:
        if isinstance(self.norm, Standardize):
            self.norm.measure(pool_tokens(features, self.pool))

    def forward(self, features: Features, draws: ClipRandom | None) -> Tensor:
        values_BX = self.norm(pool_tokens(features, self.pool))
        for number, layer in enumerate(self.hidden):
            values_BX = functional.gelu(layer(values_BX))
            values_BX = drop_values(values_BX, self.dropout, draws, purpose=f"head/dropout/{number}")
        return self.linear(values_BX)
