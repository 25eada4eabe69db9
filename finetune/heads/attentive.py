"""Attentive head: cross-attention with one learned query, an MLP and a linear layer."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from kinemae.data_tools.config import require
from kinemae.data_tools.randomness import ClipRandom
from kinemae.finetune.heads.base import Features, Head, Standardize


class AttentiveHead(Head):
    """The probe of V-JEPA (arXiv 2404.08471, section 3) with a norm before the linear layer.

    Args:
        width: values per token.
        outputs: number of values per clip, for example classes.
        head_width: values per attention head; must divide `width`. V-JEPA uses the encoder's heads.
        mlp_ratio: width of the MLP divided by `width`.
        norm: of the tokens. "layer": a layer norm. "standardize": subtract a mean and divide by a standard
            deviation, both measured once on training clips. The tokens of a masked autoencoder differ little
            compared with what they have in common, and a layer norm keeps the common part.
    """

    def __init__(
        self, *, width: int, outputs: int, head_width: int = 32, mlp_ratio: float = 4.0, norm: str = "layer"
    ):
        super().__init__()
        require(norm in ("layer", "standardize"), "head.args.norm", "be layer or standardize", norm)
        divides = head_width > 0 and width % head_width == 0
        require(divides, "head.args.head_width", f"divide the encoder's width {width}", head_width)
        require(mlp_ratio > 0, "head.args.mlp_ratio", "be above 0", mlp_ratio)
        self.head_width = head_width
        hidden = round(width * mlp_ratio)
        self.query_D = nn.Parameter(torch.empty(width))
        self.needs_calibration = norm == "standardize"
        self.norm1 = nn.LayerNorm(width, eps=1e-6) if norm == "layer" else Standardize(width)
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.linear = nn.Linear(width, outputs)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        nn.init.trunc_normal_(self.query_D, std=0.02)

    def calibrate(self, features: Features) -> None:
        if isinstance(self.norm1, Standardize):
            tokens_BND, weight_BN = features.tokens_BND, features.weight_BN
            tokens_XD = tokens_BND.flatten(0, 1) if weight_BN is None else tokens_BND[weight_BN > 0]
            self.norm1.measure(tokens_XD)

    def forward(self, features: Features, draws: ClipRandom | None) -> Tensor:
        tokens_BND, weight_BN = features.tokens_BND, features.weight_BN
        batch, tokens, width = tokens_BND.shape
        kv_BN2AF = self.kv(self.norm1(tokens_BND)).view(batch, tokens, 2, -1, self.head_width)
        key_BANF, value_BANF = kv_BN2AF.permute(2, 0, 3, 1, 4)
        query_BA1F = self.q(self.query_D).view(1, -1, 1, self.head_width).expand(batch, -1, -1, -1)
        is_token_B11N = None if weight_BN is None else (weight_BN > 0)[:, None, None]
        attended_BA1F = functional.scaled_dot_product_attention(
            query_BA1F, key_BANF, value_BANF, attn_mask=is_token_B11N
        )
        pooled_BD = self.query_D + self.proj(attended_BA1F.reshape(batch, width))
        pooled_BD = pooled_BD + self.mlp(self.norm2(pooled_BD))
        return self.linear(self.norm(pooled_BD))
