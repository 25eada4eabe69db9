"""Pre-norm transformer blocks (arXiv 2010.11929).

With drop path (stochastic depth), activation checkpointing (gradient checkpointing) and compilation.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from kinemae.pretrain.model.attention_backends import AttentionFn
from kinemae.pretrain.model.positions.base import Rotate

NORM_EPS = 1e-6
_MOST_GRAPHS = 64
"""Maximum number of shapes of a kind of module; PyTorch's default of 8 is too low for jittered masks."""


def norm(width: int, kind: str = "layer") -> nn.LayerNorm | nn.RMSNorm:
    """LayerNorm, or RMSNorm with kind "rms", with the epsilon of ViT."""
    return (RMSNorm if kind == "rms" else nn.LayerNorm)(width, eps=NORM_EPS)


class RMSNorm(nn.RMSNorm):
    """PyTorch's RMSNorm in the precision of its weight: unlike LayerNorm, autocast would not raise it."""

    def forward(self, x_BND: Tensor) -> Tensor:
        """Norm the channels."""
        return super().forward(x_BND.to(self.weight.dtype))


class SelfAttention(nn.Module):
    """Multi-head self-attention; the attention function is an argument of `forward`.

    The bias of the key has no effect in softmax attention, since it adds the same number to all scores of a
    query. It exists so that weights of models with such a bias can be loaded.

    Args:
        qk_norm: norm each head's queries and keys (arXiv 2302.05442, section 2.1).
        norm_kind: "layer" or "rms". RMSNorm norms queries and keys of all heads together, as InternVideo2.
    """

    def __init__(self, width: int, heads: int, *, qk_norm: bool = False, norm_kind: str = "layer"):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norms_heads_together = norm_kind == "rms"
        normed = width if self.norms_heads_together else width // heads
        self.q_norm = norm(normed, norm_kind) if qk_norm else nn.Identity()
        self.k_norm = norm(normed, norm_kind) if qk_norm else nn.Identity()
        self.call_attention: Callable[..., Tensor] = _call_attention

    def forward(self, x_BND: Tensor, attention_fn: AttentionFn, rotate: Rotate | None = None) -> Tensor:
        """Mix the tokens, as x_BND."""
        # By `chunk`: its backward is a single copy into the layout of the linear layer.
        query_BND, key_BND, value_BND = self.qkv(x_BND).chunk(3, dim=2)
        if self.norms_heads_together:
            query_BND, key_BND = self.q_norm(query_BND), self.k_norm(key_BND)
        query_BANF, key_BANF, value_BANF = (
            _split_heads(part_BND, self.heads) for part_BND in (query_BND, key_BND, value_BND)
        )
        if not self.norms_heads_together:
            query_BANF, key_BANF = self.q_norm(query_BANF), self.k_norm(key_BANF)
        if rotate is not None:
            query_BANF, key_BANF = rotate(query_BANF), rotate(key_BANF)
        # Under autocast a norm returns float32; FlexAttention requires equal dtypes.
        query_BANF, key_BANF = query_BANF.to(value_BANF.dtype), key_BANF.to(value_BANF.dtype)
        # On the CPU the number of index lists of an attention function may change from step to step.
        call = self.call_attention if query_BANF.is_cpu else _call_attention
        return self.proj(_join_heads(call(attention_fn, query_BANF, key_BANF, value_BANF)))


class CrossAttention(nn.Module):
    """Multi-head cross-attention from queries to a memory."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)

    def forward(
        self, x_BMD: Tensor, memory_BKD: Tensor, rotate: tuple[Rotate, Rotate] | None = None
    ) -> Tensor:
        """Attend to the memory, as x_BMD; `rotate` holds the rotations of queries and keys."""
        query_BAMF = _split_heads(self.q(x_BMD), self.heads)
        key_BAKF, value_BAKF = (
            _split_heads(part_BKD, self.heads) for part_BKD in self.kv(memory_BKD).chunk(2, dim=2)
        )
        if rotate is not None:
            query_BAMF, key_BAKF = rotate[0](query_BAMF), rotate[1](key_BAKF)
        return self.proj(_join_heads(F.scaled_dot_product_attention(query_BAMF, key_BAKF, value_BAKF)))


class Mlp(nn.Module):
    """Two linear layers with an exact GELU between them."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x_BND: Tensor) -> Tensor:
        """Apply the MLP to each token, as x_BND."""
        return self.fc2(F.gelu(self.fc1(x_BND)))


class Compilable(nn.Module):
    """A module that `engine.compile` compiles as one graph for each input shape."""


class LayerScale(nn.Module):
    """Learned scale of a residual branch, one weight per channel (arXiv 2103.17239)."""

    def __init__(self, width: int, init: float):
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), init))

    def forward(self, x_BND: Tensor) -> Tensor:
        """Scale the channels."""
        return x_BND * self.gamma


class Block(Compilable):
    """Pre-norm transformer block: one or several attentions, then the MLP, each added to the residual.

    `recompute` and `residual_dtype` are those of `set_up_blocks`.

    Args:
        attentions: number of attentions in sequence, each with its own weights. The first has timm's names
            (`norm1`, `attn`, `ls1`), further ones are in `extra_norms`, `extra_attns` and `extra_ls`.
        qk_norm: see `SelfAttention`.
        layer_scale: initial value of the `LayerScale` of each branch; None for none.
        norm_kind: "layer" or "rms"; see also `SelfAttention`.
    """

    recompute = False
    residual_dtype: torch.dtype | None = None

    def __init__(  # noqa: PLR0913 - all but the first three by name
        self,
        width: int,
        heads: int,
        mlp_width: int,
        *,
        attentions: int = 1,
        qk_norm: bool = False,
        layer_scale: float | None = None,
        norm_kind: str = "layer",
    ):
        super().__init__()

        def scale() -> nn.Module:
            return nn.Identity() if layer_scale is None else LayerScale(width, layer_scale)

        def attention() -> SelfAttention:
            return SelfAttention(width, heads, qk_norm=qk_norm, norm_kind=norm_kind)

        extra = range(attentions - 1)
        self.norm1 = norm(width, norm_kind)
        self.extra_norms = nn.ModuleList(norm(width, norm_kind) for _ in extra)
        self.attn = attention()
        self.extra_attns = nn.ModuleList(attention() for _ in extra)
        self.norm2 = norm(width, norm_kind)
        self.mlp = Mlp(width, mlp_width)
        self.ls1 = scale()
        self.extra_ls = nn.ModuleList(scale() for _ in extra)
        self.ls2 = scale()

    def forward(
        self,
        x_BND: Tensor,
        attention_fns: Sequence[AttentionFn],
        rotate: Rotate | None = None,
        keep_XBN1: Tensor | None = None,
    ) -> Tensor:
        """Run the block, as x_BND.

        Args:
            attention_fns: the attention function of each attention.
            keep_XBN1: drop-path weights of the X branches, attentions first, per clip or per token.
        """
        return self.feed_forward(self.attend(x_BND, attention_fns, rotate, keep_XBN1), keep_XBN1)

    def attend(
        self,
        x_BND: Tensor,
        attention_fns: Sequence[AttentionFn],
        rotate: Rotate | None = None,
        keep_XBN1: Tensor | None = None,
    ) -> Tensor:
        """Run the attentions, the first half of the block. See `forward`."""
        for i, ((norm_i, attn, scale), attention_fn) in enumerate(
            zip(self.branches(), attention_fns, strict=True)
        ):
            change_BND = scale(attn(norm_i(x_BND), attention_fn, rotate))
            x_BND = self._add(x_BND, change_BND if keep_XBN1 is None else change_BND * keep_XBN1[i])
        return x_BND

    def branches(self) -> list[tuple[nn.Module, nn.Module, nn.Module]]:
        """Norm, attention and layer scale of each attention branch."""
        extra = zip(self.extra_norms, self.extra_attns, self.extra_ls, strict=True)
        return [(self.norm1, self.attn, self.ls1), *extra]

    def feed_forward(self, x_BND: Tensor, keep_XBN1: Tensor | None = None) -> Tensor:
        """Run the MLP, the second half of the block."""
        change_BND = self.ls2(self.mlp(self.norm2(x_BND)))
        return self._add(x_BND, change_BND if keep_XBN1 is None else change_BND * keep_XBN1[-1])

    def _add(self, x_BND: Tensor, change_BND: Tensor) -> Tensor:
        """The sum in the dtype of the residual stream; layer scale and drop path may give float32."""
        if self.residual_dtype is not None and change_BND.element_size() > x_BND.element_size():
            change_BND = change_BND.to(x_BND.dtype)
        return x_BND + change_BND


class CrossBlock(Compilable):
    """Cross-attention to a normed memory, then the MLP; see also `Block`."""

    recompute = False
    residual_dtype: torch.dtype | None = None

    def __init__(self, width: int, heads: int, mlp_width: int):
        super().__init__()
        self.norm1 = norm(width)
        self.cross_attn = CrossAttention(width, heads)
        self.norm2 = norm(width)
        self.mlp = Mlp(width, mlp_width)

    def forward(
        self, x_BMD: Tensor, memory_BKD: Tensor, rotate: tuple[Rotate, Rotate] | None = None
    ) -> Tensor:
        """Run the block, as x_BMD."""
        x_BMD = x_BMD + self.cross_attn(self.norm1(x_BMD), memory_BKD, rotate)
        return x_BMD + self.mlp(self.norm2(x_BMD))


def run_block(block: nn.Module, *inputs: object, part: Callable[..., Tensor] | None = None) -> Tensor:
    """Call a block, or a part of it, on these inputs.

    If `block.recompute` is set, activations are recomputed in the backward pass (activation checkpointing,
    arXiv 1604.06174). Blocks use no random numbers. The first input enters in `block.residual_dtype`: this
    cast is outside of the block, so that all blocks have the same compiled graph.
    """
    run = block if part is None else part
    dtype, (x_BND, *others) = cast("torch.dtype | None", block.residual_dtype), inputs
    if dtype is not None:
        inputs = (cast("Tensor", x_BND).to(dtype), *others)
    if block.recompute and torch.is_grad_enabled():
        return checkpoint(run, *inputs, use_reentrant=False, preserve_rng_state=False)
    return run(*inputs)


def set_up_blocks(
    module: nn.Module,
    *,
    recompute: bool,
    compiled: bool,
    residual_dtype: torch.dtype | None = None,
    backend: str | Callable[..., Any] = "inductor",
) -> None:
    """Enable activation checkpointing of all blocks below `module`, or compilation of its `Compilable` parts.

    `residual_dtype` is the dtype of the residual stream between blocks; None: that of the inputs. Each input
    shape is compiled once, at the first call, with static sizes. On the CPU the attention function stays
    uncompiled, so that no attention kind is compiled again from step to step.
    """
    for child in module.modules():
        if isinstance(child, (Block, CrossBlock)):
            child.recompute = recompute
            child.residual_dtype = residual_dtype
        if isinstance(child, Compilable) and compiled:
            child.compile(dynamic=False, backend=backend)
        if isinstance(child, SelfAttention) and compiled:
            child.call_attention = torch.compiler.disable(_call_attention)
    if compiled:
        torch._dynamo.config.recompile_limit = _MOST_GRAPHS


@contextmanager
def as_in_evaluation(module: nn.Module) -> Iterator[None]:
    """While entered, modules run as in a process that does not train.

    Compiled modules run uncompiled, for inputs of other shapes than those of training, and the residual
    stream has the dtype of its inputs.
    """
    dtypes = {part: part.residual_dtype for part in module.modules() if isinstance(part, Block | CrossBlock)}
    calls = {
        part: part._compiled_call_impl
        for part in module.modules()
        if part._compiled_call_impl is not None  # set by `nn.Module.compile`
    }
    try:
        for block in dtypes:
            block.residual_dtype = None
        for part in calls:
            part._compiled_call_impl = None
        yield
    finally:
        for block, dtype in dtypes.items():
            block.residual_dtype = dtype
        for part, call in calls.items():
            part._compiled_call_impl = call


def _call_attention(
    attention_fn: AttentionFn, query_BANF: Tensor, key_BANF: Tensor, value_BANF: Tensor
) -> Tensor:
    return attention_fn(query_BANF, key_BANF, value_BANF)


def init_weights(module: nn.Module) -> None:
    """Initialise all linear layers below `module` as MAE does: Xavier-uniform weights, zero biases.

    Norms keep PyTorch's ones and zeros. The caller seeds PyTorch beforehand.
    """
    for child in module.modules():
        if isinstance(child, nn.Linear):
            nn.init.xavier_uniform_(child.weight)
            if child.bias is not None:
                nn.init.zeros_(child.bias)


def _split_heads(x_BND: Tensor, heads: int) -> Tensor:
    return x_BND.unflatten(2, (heads, -1)).transpose(1, 2)


def _join_heads(mixed_BANF: Tensor) -> Tensor:
    return mixed_BANF.transpose(1, 2).flatten(2)


def drop_path_weights(chance_BX: Tensor, rate: float) -> Tensor:
    """Weights of a clip's X branches: 0 with probability `rate`, else 1 / (1 - rate), so the mean stays 1."""
    return (chance_BX >= rate).to(chance_BX.dtype) / (1 - rate)
