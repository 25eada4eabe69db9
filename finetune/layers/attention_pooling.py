"""Pooling of tokens by attention with learned queries: parts of heads."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from kinemae.data_tools.config import require


class CrossAttentionPool(nn.Module):
    """Cross-attention from queries to tokens, then an MLP, each added to the queries.

    Args:
        head_width: values per attention head; must divide `width`.
        mlp_ratio: width of the MLP divided by `width`.
        projects: whether a linear layer follows the attention.
    """

    def __init__(self, width: int, *, head_width: int, mlp_ratio: float, projects: bool = True):
        super().__init__()
        divides = head_width > 0 and width % head_width == 0
        require(divides, "head.args.head_width", f"divide the encoder's width {width}", head_width)
        require(mlp_ratio > 0, "head.args.mlp_ratio", "be above 0", mlp_ratio)
        self.head_width = head_width
        hidden = round(width * mlp_ratio)
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width) if projects else nn.Identity()
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, query_XQD: Tensor, tokens_BND: Tensor, is_token_B11N: Tensor | None) -> Tensor:
        """Pool the tokens of each clip, as pooled_BQD.

        Args:
            query_XQD: of each clip, or with X = 1 the same for all.
            is_token_B11N: false for padding; None: no padding.
        """
        batch, _, width = tokens_BND.shape
        attended_BAQF = attention_to(is_token_B11N)(*self.project(query_XQD, tokens_BND))
        attended_BQD = attended_BAQF.transpose(1, 2).reshape(batch, -1, width)
        pooled_BQD = query_XQD + self.proj(attended_BQD)
        return pooled_BQD + self.mlp(self.norm2(pooled_BQD))

    def project(self, query_XQD: Tensor, tokens_BND: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of the heads: query_BAQF, key_BANF and value_BANF."""
        batch, tokens, _ = tokens_BND.shape
        kv_BN2AF = self.kv(tokens_BND).view(batch, tokens, 2, -1, self.head_width)
        key_BANF, value_BANF = kv_BN2AF.permute(2, 0, 3, 1, 4)
        query_XQAF = self.q(query_XQD).unflatten(2, (-1, self.head_width))
        return query_XQAF.transpose(1, 2).expand(batch, -1, -1, -1), key_BANF, value_BANF


def attention_to(is_token_B11N: Tensor | None) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Attention to all tokens but the padding."""
    return partial(functional.scaled_dot_product_attention, attn_mask=is_token_B11N)


def token_mask(weight_BN: Tensor | None) -> Tensor | None:
    """Return is_token_B11N of `Features.weight_BN`."""
    return None if weight_BN is None else (weight_BN > 0)[:, None, None]


def init_linear_layers(head: nn.Module, queries: nn.Parameter) -> None:
    """Draw truncated normal weights with a deviation of 0.02 for all linear layers, then the queries."""
    for module in head.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)
    with torch.no_grad():
        nn.init.trunc_normal_(queries, std=0.02)
