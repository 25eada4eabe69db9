"""Recorded forward passes of an encoder: its tokens after each block, and explicit attention weights.

Fused attention returns no weights. The queries and keys are recorded as they reach the attention function,
after norms and rotation, and the softmax is computed from them in chunks of queries. It is the same for all
attention kinds, because each pattern has a mask of the allowed pairs.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from kinemae.pretrain.model.attention.base import AttentionCache, AttentionPattern, Tokens
from kinemae.pretrain.model.attention_backends import QUERY_CHUNK, AttentionFn
from kinemae.pretrain.model.encoder import Encoder
from kinemae.pretrain.model.token_positions import REGISTER, TokenPositions


@dataclass(frozen=True, kw_only=True, eq=False)
class Attention:
    """One attention of a forward pass of one clip.

    Attributes:
        query_ANF, key_ANF, value_ANF, output_ANF: arguments and result of the attention function.
    """

    pattern: AttentionPattern
    positions: TokenPositions
    query_ANF: Tensor
    key_ANF: Tensor
    value_ANF: Tensor
    output_ANF: Tensor

    def weights(self) -> Iterator[tuple[slice, Tensor]]:
        """The softmax of chunks of queries, each as the slice of its queries and weight_AQN in float32."""
        tokens, device = self.query_ANF.shape[1], self.query_ANF.device
        mask_mod = self.pattern.mask_mod(Tokens.at(self.positions, device))
        key_N = torch.arange(tokens, device=device)
        for query_Q in key_N.split(QUERY_CHUNK):
            queries = slice(int(query_Q[0]), int(query_Q[-1]) + 1)
            score_AQN = self.query_ANF[:, queries].float() @ self.key_ANF.float().mT
            score_AQN /= math.sqrt(self.query_ANF.shape[2])
            is_allowed_QN = mask_mod(torch.zeros_like(key_N[:1]), query_Q[:, None], key_N[None])
            yield queries, score_AQN.masked_fill(~is_allowed_QN, -torch.inf).softmax(dim=2)

    def pull(self, start_AN: Tensor) -> Tensor:
        """Multiply a row of weights by each head's attention matrix, as weight_AN.

        Weights on queries become weights on keys: a single 1 gives the attention from that token, and equal
        weights give the attention that each token receives.
        """
        pulled_AN = torch.zeros_like(start_AN)
        for queries, weight_AQN in self.weights():
            pulled_AN += (start_AN[:, None, queries] @ weight_AQN)[:, 0]
        return pulled_AN


@dataclass(kw_only=True, eq=False)
class ForwardPass:
    """A forward pass of one clip through the blocks.

    Attributes:
        index_N: grid index of each token, or REGISTER.
        input_ND: tokens before the first block, registers included.
        attentions: in order; each block has the same number of them.
        block_ND: tokens after each block, registers included.
    """

    positions: TokenPositions
    index_N: Tensor
    input_ND: Tensor | None = None
    attentions: list[Attention] = field(default_factory=list)
    block_ND: list[Tensor] = field(default_factory=list)

    @property
    def is_token_N(self) -> Tensor:
        """False for registers."""
        return self.index_N != REGISTER

    def of_block(self, block: int) -> list[Attention]:
        """The attentions of a block."""
        branches = len(self.attentions) // len(self.block_ND)
        return self.attentions[block * branches : (block + 1) * branches]

    def on_grid(self, values_NX: Tensor) -> Tensor:
        """Values of the whole grid, without registers; NaN for tokens that were not encoded."""
        grid_NX = values_NX.new_full((self.positions.grid.tokens, *values_NX.shape[1:]), torch.nan)
        grid_NX[self.index_N[self.is_token_N]] = values_NX[self.is_token_N]
        return grid_NX


class _RecordingCache(AttentionCache):
    """Attention functions that append each call to a forward pass."""

    def __init__(self, record: ForwardPass, device: torch.device):
        super().__init__(record.positions, device)
        self._record = record

    def __missing__(self, pattern: AttentionPattern) -> AttentionFn:
        attention_fn = super().__missing__(pattern)

        def attend(query_BANF: Tensor, key_BANF: Tensor, value_BANF: Tensor) -> Tensor:
            output_BANF = attention_fn(query_BANF, key_BANF, value_BANF)
            attention = Attention(
                pattern=pattern,
                positions=self._record.positions,
                query_ANF=query_BANF[0],
                key_ANF=key_BANF[0],
                value_ANF=value_BANF[0],
                output_ANF=output_BANF[0],
            )
            self._record.attentions.append(attention)
            return output_BANF

        self[pattern] = attend
        return attend


def record(encoder: Encoder, run: Callable[[], object]) -> list[ForwardPass]:
    """Run a model on one clip and record each forward pass of its encoder, without token merging.

    Args:
        run: calls a model with this encoder on one clip; in evaluation mode, without gradients.
    """
    passes: list[ForwardPass] = []

    def cache(positions: TokenPositions, device: torch.device) -> _RecordingCache:
        passes.append(ForwardPass(positions=positions, index_N=positions.indices(device)[0]))
        return _RecordingCache(passes[-1], device)

    def keep_tokens(block: torch.nn.Module, inputs: object, x_BND: Tensor) -> None:
        assert len(x_BND) == 1, "one clip at a time is recorded"
        passes[-1].block_ND.append(x_BND[0])

    def keep_input(block: torch.nn.Module, inputs: tuple[Tensor, ...]) -> None:
        passes[-1].input_ND = inputs[0][0]

    with _replaced(encoder, "attention_cache", cache), _replaced(encoder, "merge_per_block", 0):
        hooks = [block.register_forward_hook(keep_tokens) for block in encoder.blocks]
        hooks.append(encoder.blocks[0].register_forward_pre_hook(keep_input))
        try:
            run()
        finally:
            for hook in hooks:
                hook.remove()
    return passes


@contextmanager
def _replaced(encoder: Encoder, name: str, value: object) -> Iterator[None]:
    before = getattr(encoder, name)
    setattr(encoder, name, value)
    try:
        yield
    finally:
        setattr(encoder, name, before)
