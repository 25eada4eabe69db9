"""Multi-layer head: attention pooling over the tokens of several encoder blocks."""

from typing import Any

import torch
from torch import Tensor, nn

from kinemae.data_tools.config import require
from kinemae.data_tools.randomness import ClipRandom
from kinemae.finetune.heads.base import Features, Head, Standardize, input_norm
from kinemae.finetune.layers.attention_pooling import CrossAttentionPool, init_linear_layers, token_mask


class MultilayerHead(Head):
    """Multi-layer attention pooling, one of the adaptations of VideoGLUE (arXiv 2307.03166).

    Each layer has its own norm and cross-attention. The learned query attends to the first layer of the list,
    and the result is the query for the next one. A frozen encoder's middle blocks often hold what its last
    block has lost.

    Args:
        width: values per token.
        outputs: number of values per clip, for example classes.
        layers: the encoder's blocks: numbers from 0, numbers from -1 for the last, or fractions of the depth
            (1.0 is the last block).
        head_width: values per attention head; must divide `width`.
        mlp_ratio: width of each MLP divided by `width`.
        norm: of the tokens of each block: "layer" or "standardize", see the attentive head.
    """

    def __init__(
        self,
        *,
        width: int,
        outputs: int,
        layers: list[Any] | None = None,
        head_width: int = 32,
        mlp_ratio: float = 4.0,
        norm: str = "layer",
    ):
        super().__init__()
        layers = [0.25, 0.5, 0.75, 1.0] if layers is None else layers
        is_list = isinstance(layers, list) and len(layers) > 0 and all(map(_is_number, layers))
        require(is_list, "head.args.layers", "be a list of block numbers or fractions of the depth", layers)
        self.layers = tuple(layers)
        self.needs_calibration = norm == "standardize"
        self.query_QD = nn.Parameter(torch.empty(1, width))
        self.norms = nn.ModuleList(input_norm(norm, width) for _ in layers)
        self.pools = nn.ModuleList(
            CrossAttentionPool(width, head_width=head_width, mlp_ratio=mlp_ratio) for _ in layers
        )
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.linear = nn.Linear(width, outputs)
        init_linear_layers(self, self.query_QD)

    def calibrate(self, features: Features) -> None:
        for norm, tokens_BND in zip(self.norms, features.layers, strict=True):
            if isinstance(norm, Standardize):
                norm.measure(features._replace(tokens_BND=tokens_BND).tokens_XD)

    def forward(self, features: Features, draws: ClipRandom | None) -> Tensor:
        is_token_B11N = token_mask(features.weight_BN)
        pooled_BQD = self.query_QD[None]
        for norm, pool, tokens_BND in zip(self.norms, self.pools, features.layers, strict=True):
            pooled_BQD = pool(pooled_BQD, norm(tokens_BND), is_token_B11N)
        return self.linear(self.norm(pooled_BQD[:, 0]))


def _is_number(layer: Any) -> bool:
    is_fraction = isinstance(layer, float) and 0 < layer <= 1
    return is_fraction or (isinstance(layer, int) and not isinstance(layer, bool))
