"""Learned scoring: the encoder says itself which of its embedded tokens are worth going on with.

Kept tokens are multiplied by a gate of their score, so that the loss tells the scorer what it should have
kept, as Mixture-of-Depths does (arXiv 2404.02258, section 3.4). There a second loss pushes the scores of
kept tokens above 0, so that one may choose without ranking; it also pushes the choice itself. Here a
threshold follows the scores instead: it learns the quantile that the kept share leaves below itself.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kinemae.pretrain.model.blocks import norm
from kinemae.pretrain.model.packing import kept_count, top_tokens

_START_STD = 0.02
_THRESHOLD_WEIGHT = 0.01
"""Of the threshold's loss. Adam does not care; it keeps the threshold out of the norm that gradients have."""


@dataclass(frozen=True, kw_only=True, eq=False)
class KeptTokens:
    """The tokens that a fixed share leaves.

    Attributes:
        index_BK: which of the tokens given, ascending.
        x_BKD: those tokens, gated.
        threshold_loss_B: to be added to the loss; only the threshold has a gradient of it.
    """

    index_BK: Tensor
    x_BKD: Tensor
    threshold_loss_B: Tensor


class Scorer(nn.Module):
    """A small MLP on each embedded token by itself, positions included.

    A score above the threshold is as high as those of the kept share of the tokens on the whole. The gate,
    twice the sigmoid of what the score has above the threshold, is close to 1 at the start.
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
        """Keep the tokens of the highest score, a share of them, rounded."""
        score_BN = self(x_BND)
        index_BK = top_tokens(score_BN.detach(), kept_count(x_BND.shape[1], keep))
        x_BKD = x_BND.gather(1, index_BK[..., None].expand(-1, -1, x_BND.shape[2]))
        return KeptTokens(
            index_BK=index_BK,
            x_BKD=x_BKD * self.gate(score_BN.gather(1, index_BK), x_BKD.dtype),
            threshold_loss_B=self._threshold_loss(score_BN, keep),
        )

    def gate(self, score_BN: Tensor, dtype: torch.dtype) -> Tensor:
        """What tokens of such scores are multiplied by, gate_BN1."""
        return (2 * torch.sigmoid(score_BN - self.threshold.detach())).to(dtype)[..., None]

    def _threshold_loss(self, score_BN: Tensor, keep: float) -> Tensor:
        """The pinball loss, least where a share `keep` lies above (Koenker and Bassett 1978)."""
        above_BN = score_BN.detach() - self.threshold
        return _THRESHOLD_WEIGHT * torch.maximum((1 - keep) * above_BN, -keep * above_BN).mean(dim=1)


def add_gradient_of(loss_B: Tensor, other_B: Tensor) -> Tensor:
    """The loss unchanged in value, with another's gradient added to its own."""
    return loss_B + (other_B - other_B.detach())
