"""The transformer's parts: pre-norm blocks of fused attention and a GELU MLP (arXiv 2010.11929)."""

import torch.nn.functional as F
from torch import Tensor, nn

NORM_EPS = 1e-6


def norm(width: int) -> nn.LayerNorm:
    """The layer norm used everywhere; ViT's epsilon, not PyTorch's."""
    return nn.LayerNorm(width, eps=NORM_EPS)


class SelfAttention(nn.Module):
    """Joint attention among all tokens of a clip.

    Query, key and value share one linear layer with a full bias. The key's third of it has no effect: it
    adds the same number to all of a query's scores, which softmax takes away again. It is kept because
    one plain layer also holds weights of models that were trained with it.
    """

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x_BND: Tensor) -> Tensor:
        """Mix the tokens, as x_BND."""
        query_BANF, key_BANF, value_BANF = _split_heads(self.qkv(x_BND), 3, self.heads)
        return self.out(_attend(query_BANF, key_BANF, value_BANF))


class CrossAttention(nn.Module):
    """Queries look at a memory and not at one another, so their number costs only linearly."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x_BMD: Tensor, memory_BKD: Tensor) -> Tensor:
        """Read the memory at each query, as x_BMD."""
        (query_BAMF,) = _split_heads(self.query(x_BMD), 1, self.heads)
        key_BAKF, value_BAKF = _split_heads(self.key_value(memory_BKD), 2, self.heads)
        return self.out(_attend(query_BAMF, key_BAKF, value_BAKF))


class Mlp(nn.Module):
    """Two linear layers with an exact GELU between them."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.expand = nn.Linear(width, hidden)
        self.shrink = nn.Linear(hidden, width)

    def forward(self, x_BND: Tensor) -> Tensor:
        """Change each token by itself, as x_BND."""
        return self.shrink(F.gelu(self.expand(x_BND)))


class Block(nn.Module):
    """Self-attention, then the MLP, each after a norm and added to the stream."""

    def __init__(self, width: int, heads: int, mlp_width: int):
        super().__init__()
        self.norm_attention = norm(width)
        self.attention = SelfAttention(width, heads)
        self.norm_mlp = norm(width)
        self.mlp = Mlp(width, mlp_width)

    def forward(self, x_BND: Tensor, keep_B2: Tensor | None = None) -> Tensor:
        """Run the block, as x_BND; keep_B2 weighs each clip's two branches (drop path)."""
        attended_BND = self.attention(self.norm_attention(x_BND))
        x_BND = x_BND + (attended_BND if keep_B2 is None else attended_BND * keep_B2[:, :1, None])
        changed_BND = self.mlp(self.norm_mlp(x_BND))
        return x_BND + (changed_BND if keep_B2 is None else changed_BND * keep_B2[:, 1:, None])


class CrossBlock(nn.Module):
    """Cross-attention to a memory that is already normed, then the MLP."""

    def __init__(self, width: int, heads: int, mlp_width: int):
        super().__init__()
        self.norm_attention = norm(width)
        self.attention = CrossAttention(width, heads)
        self.norm_mlp = norm(width)
        self.mlp = Mlp(width, mlp_width)

    def forward(self, x_BMD: Tensor, memory_BKD: Tensor) -> Tensor:
        """Run the block, as x_BMD."""
        x_BMD = x_BMD + self.attention(self.norm_attention(x_BMD), memory_BKD)
        return x_BMD + self.mlp(self.norm_mlp(x_BMD))


def init_weights(module: nn.Module) -> None:
    """MAE's start for every linear layer below `module`: Xavier-uniform weights, zero biases.

    Norms keep PyTorch's ones and zeros. The caller seeds PyTorch before the build.
    """
    for child in module.modules():
        if isinstance(child, nn.Linear):
            nn.init.xavier_uniform_(child.weight)
            if child.bias is not None:
                nn.init.zeros_(child.bias)


def _split_heads(x_BND: Tensor, parts: int, heads: int) -> tuple[Tensor, ...]:
    """Split a fused projection into its parts, each (B, A, N, F).

    By chunks: their gradients are then joined by one copy into the layout that the linear layer needs.
    """
    return tuple(part.unflatten(2, (heads, -1)).transpose(1, 2) for part in x_BND.chunk(parts, dim=2))


def _attend(query_BAMF: Tensor, key_BAKF: Tensor, value_BAKF: Tensor) -> Tensor:
    """Fused attention with the heads put together again, as (B, M, D)."""
    mixed_BAMF = F.scaled_dot_product_attention(query_BAMF, key_BAKF, value_BAKF)
    return mixed_BAMF.transpose(1, 2).flatten(2)


def kept_branches(chance_B2: Tensor, rate: float) -> Tensor:
    """Weights of a clip's two branches: 0 with chance `rate`, else 1 / (1 - rate) so the mean stays 1."""
    return (chance_B2 >= rate).to(chance_B2.dtype) / (1 - rate)
