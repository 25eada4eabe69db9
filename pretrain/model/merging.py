"""Token merging: tokens that look alike become one on their way up (ToMe, arXiv 2210.09461).

In each block, between attention and MLP, the tokens are dealt out in turn into two sets; each of the first
finds the most similar one of the second, by its keys' mean over the heads, and the pairs that are most
alike become one token: the mean of all that both stand for. After the last block every token gets its
group's vector, so that what follows sees all tokens. Nothing is learned: it works on any encoder whose
attention is joint, trained with it or not.

Unlike in ToMe's code tokens stay in the order of the grid. Where positions turn queries and keys, a merged
token stands where the one stood that the others went to.
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
    """Which tokens go (R of them), where to, and which stay (K), all by their places among N tokens.

    Attributes:
        source_BR: those that go, ascending.
        target_BR: which one each of them goes to.
        kept_BK: those that stay, ascending.
    """

    source_BR: Tensor
    target_BR: Tensor
    kept_BK: Tensor


class Merging:
    """One forward pass: where each token went, and how many each one stands for.

    Args:
        per_block: tokens to merge in each block; at most half of those left.
        index_BN: which token of the grid each one is.
        registers: how many at the front are registers, which stay by themselves.
    """

    def __init__(self, per_block: int, index_BN: Tensor, *, registers: int = 0):
        self.per_block = per_block
        self.index_BN = index_BN
        self.registers = registers
        self.size_BN = torch.ones(index_BN.shape, device=index_BN.device)
        self.group_BN = torch.arange(index_BN.shape[1], device=index_BN.device).expand_as(index_BN)
        self._key_BNF: Tensor | None = None

    def attention_fn(self) -> AttentionFn:
        """Attention in which a token that stands for n weighs as n equal ones would (section 3)."""
        log_size_BN = self.size_BN.log()  # as it is now: a block may run again in the backward pass

        def attend(query_BANF: Tensor, key_BANF: Tensor, value_BANF: Tensor) -> Tensor:
            self._key_BNF = key_BANF.detach().mean(dim=1)
            weight_B11N = log_size_BN.to(query_BANF.dtype)[:, None, None]
            return F.scaled_dot_product_attention(query_BANF, key_BANF, value_BANF, attn_mask=weight_B11N)

        return attend

    def merge(self, x_BND: Tensor) -> Tensor:
        """Merge by the keys of the attention just done, as x_BKD."""
        if x_BND.shape[1] - self.registers < 2:
            return x_BND  # a lone token has no partner
        assert self._key_BNF is not None
        pairs = match(self._key_BNF, self.per_block, first=self.registers)
        place_BN = _places(pairs, x_BND.shape[1])
        size_BN1 = self.size_BN[..., None]
        sum_BKD = _sum(x_BND * size_BN1.to(x_BND.dtype), pairs, place_BN)
        size_BK1 = _sum(size_BN1, pairs, place_BN)
        self.size_BN = size_BK1.squeeze(2)
        self.index_BN = self.index_BN.gather(1, pairs.kept_BK)
        self.group_BN = place_BN.gather(1, self.group_BN)
        return sum_BKD / size_BK1.to(sum_BKD.dtype)

    def unmerge(self, x_BKD: Tensor) -> Tensor:
        """Give every token that was there at first its group's vector, as x_BND."""
        return x_BKD.gather(1, self.group_BN[..., None].expand(-1, -1, x_BKD.shape[2]))


def merging_blocks(
    blocks: Iterable[Block],
    x_BND: Tensor,
    merging: Merging,
    *,
    pos_embed: Positions,
    keep: Callable[[int], Tensor | None],
) -> Tensor:
    """Run an encoder's blocks of joint attention and merge in each, as x_BND of all tokens.

    Args:
        keep: the weights of a block's branches (drop path), by its number.
    """
    for i, block in enumerate(blocks):
        rotate, keep_XBN1 = pos_embed.rotation(merging.index_BN), keep(i)
        x_BND = run_block(block, x_BND, [merging.attention_fn()], rotate, keep_XBN1, part=block.attend)
        x_BND = run_block(block, merging.merge(x_BND), keep_XBN1, part=block.feed_forward)
    return merging.unmerge(x_BND)


@torch.no_grad()
def match(key_BNF: Tensor, count: int, *, first: int = 0) -> Pairs:
    """Bipartite soft matching (section 3): the tokens with the most similar partners, by cosine.

    Args:
        count: how many tokens are to go; at most half of them do.
        first: tokens at the front that take no part.
    """
    tokens = key_BNF.shape[1]
    count = min(count, (tokens - first) // 2)
    key_BNF = F.normalize(key_BNF.float(), dim=2)
    likeness_BUV = key_BNF[:, first::2] @ key_BNF[:, first + 1 :: 2].transpose(1, 2)
    best_BU, partner_BU = likeness_BUV.max(dim=2)
    order_BU = best_BU.argsort(dim=1, descending=True, stable=True)
    going_BR = order_BU[:, :count].sort(dim=1).values
    source_BR = first + 2 * going_BR
    is_gone_BN = torch.zeros(key_BNF.shape[:2], dtype=torch.int8, device=key_BNF.device)
    is_gone_BN = is_gone_BN.scatter(1, source_BR, 1)
    return Pairs(
        source_BR=source_BR,
        target_BR=first + 1 + 2 * partner_BU.gather(1, going_BR),
        # Sorted, not picked by the boolean: how many stay is known without asking the device.
        kept_BK=is_gone_BN.argsort(dim=1, stable=True)[:, : tokens - count],
    )


def _places(pairs: Pairs, tokens: int) -> Tensor:
    """Each of the N tokens' new place among those that stay, place_BN."""
    clips, kept = pairs.kept_BK.shape
    new_BK = torch.arange(kept, device=pairs.kept_BK.device).expand(clips, -1)
    place_BN = new_BK.new_zeros(clips, tokens).scatter(1, pairs.kept_BK, new_BK)
    return place_BN.scatter(1, pairs.source_BR, place_BN.gather(1, pairs.target_BR))


def _sum(x_BND: Tensor, pairs: Pairs, place_BN: Tensor) -> Tensor:
    """Each group's sum, as x_BKD."""
    kept_BKD, gone_BRD = (
        x_BND.gather(1, index[..., None].expand(-1, -1, x_BND.shape[2]))
        for index in (pairs.kept_BK, pairs.source_BR)
    )
    place_BR = place_BN.gather(1, pairs.source_BR)
    return kept_BKD.scatter_add(1, place_BR[..., None].expand_as(gone_BRD), gone_BRD)
