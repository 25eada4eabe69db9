"""Learned token scores: the encoder scores its embedded tokens and keeps the highest-scored ones.

Kept tokens are multiplied by a gate of their score, so the scorer gets a gradient from the loss, as in
Mixture-of-Depths (arXiv 2404.02258, section 3.4). Mixture-of-Depths adds a loss on the scores, so that tokens
can be chosen by a fixed threshold; that loss also changes the choice. Here a learned threshold tracks the
quantile of the scores instead.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kinemae.pretrain.model.blocks import norm
from kinemae.pretrain.model.packing import kept_count, top_tokens

_START_STD = 0.02
_THRESHOLD_WEIGHT = 0.01
"""Weight of the threshold's loss: keeps its gradient small in the gradient norm; Adam is invariant to it."""


@dataclass(frozen=True, kw_only=True, eq=False)
class KeptTokens:
    """The kept tokens.

    Attributes:
        index_BK: indices among the input tokens, ascending.
        x_BKD: kept tokens, gated.
        threshold_loss_B: term of the loss whose gradient reaches the threshold only.
    """

    index_BK: Tensor
    x_BKD: Tensor
    threshold_loss_B: Tensor


class Scorer(nn.Module):
    """A small MLP that scores each embedded token, positions included.

    The gate of a token is 2 * sigmoid(score - threshold), close to 1 at initialization.
    """

    def __init__(self, width: int):
        super().__init__()
        hidden = max(8, width // 4)
        self.norm = norm(width)
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, 1)
        self.threshold = nn.Parameter(torch.zeros(1))
        for linear in (self.fc1, self.fc2):
            nn.init.trunc_normal_(linear.weight, std=_START_STD)
            nn.init.zeros_(linear.bias)

    def forward(self, x_BND: Tensor) -> Tensor:
        """Score the tokens, score_BN in float32."""
        hidden_BNX = nn.functional.gelu(self.fc1(self.norm(x_BND)))
        return self.fc2(hidden_BNX).squeeze(2).float()

    def select(self, x_BND: Tensor, keep: float) -> KeptTokens:
        """Keep this fraction of the tokens, rounded, those of the highest scores."""
        score_BN = self(x_BND)
        index_BK = top_tokens(score_BN.detach(), kept_count(x_BND.shape[1], keep))
        x_BKD = x_BND.gather(1, index_BK[..., None].expand(-1, -1, x_BND.shape[2]))
        return KeptTokens(
            index_BK=index_BK,
            x_BKD=x_BKD * self.gate(score_BN.gather(1, index_BK), x_BKD.dtype),
            threshold_loss_B=self._threshold_loss(score_BN, keep),
        )

    def gate(self, score_BN: Tensor, dtype: torch.dtype) -> Tensor:
        """Factor of tokens with these scores, gate_BN1."""
        return (2 * torch.sigmoid(score_BN - self.threshold.detach())).to(dtype)[..., None]

    def _threshold_loss(self, score_BN: Tensor, keep: float) -> Tensor:
        """Pinball loss; its minimum has a fraction `keep` of the scores above the threshold."""
        above_BN = score_BN.detach() - self.threshold
        return _THRESHOLD_WEIGHT * torch.maximum((1 - keep) * above_BN, -keep * above_BN).mean(dim=1)


def add_gradient_of(loss_B: Tensor, other_B: Tensor) -> Tensor:
    """Add the gradient of `other_B` to a loss without changing its value."""
    return loss_B + (other_B - other_B.detach())
