"""Attentive head: self-attention blocks, cross-attention with learned queries, an MLP and a linear layer."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kinemae.data_tools.config import require
from kinemae.data_tools.randomness import ClipRandom
from kinemae.finetune.heads.base import Features, Head, Standardize, input_norm
from kinemae.finetune.layers.attention_pooling import (
    CrossAttentionPool,
    attention_to,
    init_linear_layers,
    token_mask,
)
from kinemae.pretrain.model.blocks import Block, run_block

_PER_COLUMN = "per_column"


class AttentiveHead(Head):
    """The probe of V-JEPA (arXiv 2404.08471, section 3) with a norm before the linear layer.

    A depth of 4 is the probe of V-JEPA 2 (arXiv 2506.09985): three self-attention blocks, then the
    cross-attention.

    Args:
        width: values per token.
        outputs: number of values per clip, for example classes.
        groups: numbers of consecutive outputs that belong to one label column.
        head_width: values per attention head; must divide `width`. V-JEPA uses the encoder's heads.
        mlp_ratio: width of each MLP divided by `width`.
        norm: of the tokens. "layer": a layer norm. "standardize": subtract a mean and divide by a standard
            deviation, both measured once on training clips. The tokens of a masked autoencoder differ little
            compared with what they have in common, and a layer norm keeps the common part.
        depth: 1 for the cross-attention, plus the number of self-attention blocks over the tokens before it.
        queries: number of learned queries, whose results are averaged; or "per_column": one query per label
            column, from which the outputs of its column are computed.
        query_depth: number of self-attention blocks over the queries after the cross-attention.
        plain: V-JEPA 2's own pooler: no norm of the tokens, no linear layer after the attention of the
            queries, and no norm before the last linear layer.
    """

    def __init__(  # noqa: PLR0913 - keyword-only
        self,
        *,
        width: int,
        outputs: int,
        groups: Sequence[int],
        head_width: int = 32,
        mlp_ratio: float = 4.0,
        norm: str = "layer",
        depth: int = 1,
        queries: int | str = 1,
        query_depth: int = 0,
        plain: bool = False,
    ):
        super().__init__()
        require(depth >= 1, "head.args.depth", "be at least 1", depth)
        require(query_depth >= 0, "head.args.query_depth", "be 0 or more", query_depth)
        is_count = isinstance(queries, int) and not isinstance(queries, bool) and queries >= 1
        is_valid = is_count or queries == _PER_COLUMN
        require(is_valid, "head.args.queries", f"be a number from 1, or {_PER_COLUMN}", queries)
        self.groups = tuple(groups) if queries == _PER_COLUMN else ()
        self.query_QD = nn.Parameter(torch.empty(len(self.groups) or int(queries), width))
        self.needs_calibration = norm == "standardize"
        require(
            norm == "layer" or not plain, "head.args.norm", "be layer with plain, which has no norm", norm
        )
        self.norm1 = nn.Identity() if plain else input_norm(norm, width)
        self.pool = CrossAttentionPool(width, head_width=head_width, mlp_ratio=mlp_ratio, projects=not plain)
        self.norm = nn.Identity() if plain else nn.LayerNorm(width, eps=1e-6)
        self.linear = nn.Linear(width, outputs)
        heads, hidden = width // head_width, round(width * mlp_ratio)
        self.blocks = nn.ModuleList(Block(width, heads, hidden) for _ in range(depth - 1))
        self.memory_norm = nn.LayerNorm(width, eps=1e-6) if depth > 1 else nn.Identity()
        self.query_blocks = nn.ModuleList(Block(width, heads, hidden) for _ in range(query_depth))
        init_linear_layers(self, self.query_QD)

    def calibrate(self, features: Features) -> None:
        if isinstance(self.norm1, Standardize):
            self.norm1.measure(features.tokens_XD)

    def forward(self, features: Features, draws: ClipRandom | None) -> Tensor:
        is_token_B11N = token_mask(features.weight_BN)
        x_BND = self.norm1(features.tokens_BND)
        for block in self.blocks:
            x_BND = run_block(block, x_BND, [attention_to(is_token_B11N)])
        pooled_BQD = self.pool(self.query_QD[None], self.memory_norm(x_BND), is_token_B11N)
        for block in self.query_blocks:
            pooled_BQD = run_block(block, pooled_BQD, [attention_to(None)])
        if not self.groups:
            return self.linear(self.norm(pooled_BQD.mean(dim=1)))
        columns = self.linear(self.norm(pooled_BQD)).split(list(self.groups), dim=2)
        return torch.cat([column_BQY[:, query] for query, column_BQY in enumerate(columns)], dim=1)
