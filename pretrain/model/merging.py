"""Token merging in each block (ToMe, arXiv 2210.09461).

Between attention and MLP, tokens alternate between two sets. Each token of the first set is matched with the
most similar token of the second, by the keys' mean over the heads. The most similar pairs are merged into
their size-weighted mean. After the last block every original token gets the vector of its merged token.
Merging has no parameters: it works on any encoder with joint attention, also without training for it.

Unlike in ToMe's code, tokens keep the order of the grid. With rotary positions a merged token has the
position of the token of the second set.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from kinemae.pretrain.model.attention_backends import AttentionFn
from kinemae.pretrain.model.blocks import Block, run_block
from kinemae.pretrain.model.positions.base import Positions


class Pairs(NamedTuple):
    """Matched tokens, as indices among N tokens.

    Attributes:
        source_BR: tokens that are merged into others, ascending.
        target_BR: the token that each of them is merged into.
        kept_BK: remaining tokens, ascending.
    """

    source_BR: Tensor
    target_BR: Tensor
    kept_BK: Tensor


class Merging:
    """State of merging in one forward pass: group and size of each token.

    Args:
        per_block: tokens to merge in each block; at most half of the remaining ones.
        index_BN: grid index of each token.
        registers: number of registers at the front, which are not merged.
    """

    def __init__(self, per_block: int, index_BN: Tensor, *, registers: int = 0):
        self.per_block = per_block
        self.index_BN = index_BN
        self.registers = registers
        self.size_BN = torch.ones(index_BN.shape, device=index_BN.device)
        self.group_BN = torch.arange(index_BN.shape[1], device=index_BN.device).expand_as(index_BN)
        self._key_BNF: Tensor | None = None

    def attention_fn(self) -> AttentionFn:
        """Proportional attention: a token of size n has the weight of n equal tokens (section 3)."""
        log_size_BN = self.size_BN.log()  # current value: a block may be recomputed in the backward pass

        def attend(query_BANF: Tensor, key_BANF: Tensor, value_BANF: Tensor) -> Tensor:
            self._key_BNF = key_BANF.detach().mean(dim=1)
            weight_B11N = log_size_BN.to(query_BANF.dtype)[:, None, None]
            return F.scaled_dot_product_attention(query_BANF, key_BANF, value_BANF, attn_mask=weight_B11N)

        return attend

    def merge(self, x_BND: Tensor) -> Tensor:
        """Merge by the keys of the last attention, as x_BKD."""
        if x_BND.shape[1] - self.registers < 2:
            return x_BND  # a single token has no partner
        assert self._key_BNF is not None
        pairs = match(self._key_BNF, self.per_block, first=self.registers)
        new_index_BN = _new_indices(pairs, x_BND.shape[1])
        size_BN1 = self.size_BN[..., None]
        sum_BKD = _sum(x_BND * size_BN1.to(x_BND.dtype), pairs, new_index_BN)
        size_BK1 = _sum(size_BN1, pairs, new_index_BN)
        self.size_BN = size_BK1.squeeze(2)
        self.index_BN = self.index_BN.gather(1, pairs.kept_BK)
        self.group_BN = new_index_BN.gather(1, self.group_BN)
        return sum_BKD / size_BK1.to(sum_BKD.dtype)

    def unmerge(self, x_BKD: Tensor) -> Tensor:
        """Copy the vector of each merged token to its original tokens, as x_BND."""
        return x_BKD.gather(1, self.group_BN[..., None].expand(-1, -1, x_BKD.shape[2]))


def merging_blocks(
    blocks: Iterable[Block],
    x_BND: Tensor,
    merging: Merging,
    *,
    pos_embed: Positions,
    keep: Callable[[int], Tensor | None],
) -> Tensor:
    """Run an encoder's blocks with merging, as x_BND of all tokens.

    Args:
        keep: drop-path weights of a block, by its index.
    """
    for i, block in enumerate(blocks):
        rotate, keep_XBN1 = pos_embed.rotation(merging.index_BN), keep(i)
        x_BND = run_block(block, x_BND, [merging.attention_fn()], rotate, keep_XBN1, part=block.attend)
        x_BND = run_block(block, merging.merge(x_BND), keep_XBN1, part=block.feed_forward)
    return merging.unmerge(x_BND)


@torch.no_grad()
def match(key_BNF: Tensor, count: int, *, first: int = 0) -> Pairs:
    """Bipartite soft matching (section 3) of the most similar tokens, by cosine.

    Args:
        count: number of tokens to merge; at most half of the tokens.
        first: number of tokens at the front that are excluded.
    """
    tokens = key_BNF.shape[1]
    count = min(count, (tokens - first) // 2)
    key_BNF = F.normalize(key_BNF.float(), dim=2)
    similarity_BUV = key_BNF[:, first::2] @ key_BNF[:, first + 1 :: 2].transpose(1, 2)
    best_BU, partner_BU = similarity_BUV.max(dim=2)
    order_BU = best_BU.argsort(dim=1, descending=True, stable=True)
    merged_BR = order_BU[:, :count].sort(dim=1).values
    source_BR = first + 2 * merged_BR
    is_merged_BN = torch.zeros(key_BNF.shape[:2], dtype=torch.int8, device=key_BNF.device)
    is_merged_BN = is_merged_BN.scatter(1, source_BR, 1)
    return Pairs(
        source_BR=source_BR,
        target_BR=first + 1 + 2 * partner_BU.gather(1, merged_BR),
        # By sorting instead of a boolean index: the number of kept tokens is known without a device sync.
        kept_BK=is_merged_BN.argsort(dim=1, stable=True)[:, : tokens - count],
    )


def _new_indices(pairs: Pairs, tokens: int) -> Tensor:
    """New index of each of the N tokens after merging, new_index_BN."""
    clips, kept = pairs.kept_BK.shape
    new_BK = torch.arange(kept, device=pairs.kept_BK.device).expand(clips, -1)
    new_index_BN = new_BK.new_zeros(clips, tokens).scatter(1, pairs.kept_BK, new_BK)
    return new_index_BN.scatter(1, pairs.source_BR, new_index_BN.gather(1, pairs.target_BR))


def _sum(x_BND: Tensor, pairs: Pairs, new_index_BN: Tensor) -> Tensor:
    """Sum of each group, as x_BKD."""
    kept_BKD, merged_BRD = (
        x_BND.gather(1, index[..., None].expand(-1, -1, x_BND.shape[2]))
        for index in (pairs.kept_BK, pairs.source_BR)
    )
    new_index_BR = new_index_BN.gather(1, pairs.source_BR)
    return kept_BKD.scatter_add(1, new_index_BR[..., None].expand_as(merged_BRD), merged_BRD)
