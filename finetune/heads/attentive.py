"""The attentive head: one learned query looks at all tokens and picks what matters for the classes."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from kinemae.data_tools.config import require
from kinemae.data_tools.randomness import ClipRandom
from kinemae.finetune.heads.base import Head, Standard


class AttentiveHead(Head):
    """A cross-attention block with one query, then a norm and a linear layer.

    After V-JEPA's probe (arXiv 2404.08471, section 3), which has no such norm and takes the encoder's heads.

    Args:
        width: values per token.
        classes: number of classes.
        head_width: values per attention head; must divide the width.
        mlp_ratio: hidden values of the MLP for each value of the width.
        norm: of the tokens. "layer": a layer norm. "standard": each value is brought to mean 0 and deviation
            1 over the tokens of training clips, measured once. What tells tokens of a masked autoencoder
            apart is small beside what all of them share, and a layer norm leaves it so.
    """

    def __init__(
        self,
        *,
        width: int,
        classes: int,
        head_width: int = 32,
        mlp_ratio: float = 4.0,
        norm: str = "layer",
    ):
        super().__init__()
        require(norm in ("layer", "standard"), "head.args.norm", "be layer or standard", norm)
        divides = head_width > 0 and width % head_width == 0
        require(divides, "head.args.head_width", f"divide the encoder's width {width}", head_width)
        require(mlp_ratio > 0, "head.args.mlp_ratio", "be above 0", mlp_ratio)
        self.head_width = head_width
        hidden = round(width * mlp_ratio)
        self.query_D = nn.Parameter(torch.empty(width))
        self.needs_calibration = norm == "standard"
        self.norm_tokens = nn.LayerNorm(width, eps=1e-6) if norm == "layer" else Standard(width)
        self.to_query = nn.Linear(width, width)
        self.to_key_value = nn.Linear(width, 2 * width)
        self.project = nn.Linear(width, width)
        self.norm_mlp = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.linear = nn.Linear(width, classes)
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        nn.init.trunc_normal_(self.query_D, std=0.02)

    def calibrate(self, tokens_BND: Tensor, weight_BN: Tensor | None = None) -> None:
        """See `Head.calibrate`."""
        if isinstance(self.norm_tokens, Standard):
            is_token_BN = torch.ones(tokens_BND.shape[:2], dtype=torch.bool, device=tokens_BND.device)
            self.norm_tokens.measure(tokens_BND[is_token_BN if weight_BN is None else weight_BN > 0])

    def forward(
        self, tokens_BND: Tensor, draws: ClipRandom | None, weight_BN: Tensor | None = None
    ) -> Tensor:
        batch, tokens, width = tokens_BND.shape
        key_value_BNX = self.to_key_value(self.norm_tokens(tokens_BND))
        key_value_BN2AF = key_value_BNX.view(batch, tokens, 2, -1, self.head_width)
        key_BANF, value_BANF = key_value_BN2AF.permute(2, 0, 3, 1, 4)
        query_BA1F = self.to_query(self.query_D).view(1, -1, 1, self.head_width).expand(batch, -1, -1, -1)
        is_token_B11N = None if weight_BN is None else (weight_BN > 0)[:, None, None]
        seen_BA1F = functional.scaled_dot_product_attention(
            query_BA1F, key_BANF, value_BANF, attn_mask=is_token_B11N
        )
        pooled_BD = self.query_D + self.project(seen_BA1F.reshape(batch, width))
        pooled_BD = pooled_BD + self.mlp(self.norm_mlp(pooled_BD))
        return self.linear(self.norm(pooled_BD))
