"""The linear head: the mean of all tokens, a norm and one linear layer."""

from torch import Tensor, nn

from data_tools.config import require
from data_tools.randomness import ClipRandom
from finetune.heads.base import Head


class LinearHead(Head):
    """Mean pooling as in VideoMAE's fine-tuning (arXiv 2203.12602).

    Args:
        width: values per token.
        classes: number of classes.
        dropout: share of the pooled values set to zero in training.
        init_std: of the linear weights. Tiny, so that the first steps hardly disturb a pretrained
            encoder: VideoMAE draws with 0.02 and scales by 0.001.
    """

    def __init__(self, *, width: int, classes: int, dropout: float = 0.0, init_std: float = 2e-5):
        super().__init__()
        require(0 <= dropout < 1, "head.args.dropout", "lie in [0, 1)", dropout)
        require(init_std >= 0, "head.args.init_std", "be 0 or more", init_std)
        self.dropout = dropout
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.linear = nn.Linear(width, classes)
        nn.init.trunc_normal_(self.linear.weight, std=init_std, a=-2 * init_std, b=2 * init_std)
        nn.init.zeros_(self.linear.bias)

    def forward(self, tokens_BND: Tensor, draws: ClipRandom | None) -> Tensor:
        pooled_BD = self.norm(tokens_BND.mean(dim=1))
        if draws is not None and self.dropout > 0:
            is_kept_BD = draws.uniform("head/dropout", (pooled_BD.shape[-1],)) >= self.dropout
            pooled_BD = pooled_BD * is_kept_BD / (1 - self.dropout)
        return self.linear(pooled_BD)
