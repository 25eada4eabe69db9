"""Attention backends: dense mask, FlexAttention, groups and packed clips. All compute the same result.

`dense` computes all pairs. `grouped` computes batches of groups, whose sizes must be known on the CPU.
`per_clip` is for packed clips without further restriction. `flex` is FlexAttention, which skips masked blocks
of 128 x 128 pairs on a GPU; `chunked_queries` replaces it where PyTorch does not compile it.
"""

import functools
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

AttentionFn = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Attention of (query, key, value), each (B, A, N, F), as (B, A, N, F)."""

MaskMod = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Whether a query attends to a key, by (row, query, key): int64 indices that broadcast."""

FLEX_MIN_HEAD = 16
"""Narrowest head that FlexAttention's kernels accept."""

GROUP_CHUNK = 64
"""Queries in a chunk of `chunk_batches`; larger chunks compute more masked pairs."""

QUERY_CHUNK = 512
"""Queries in a chunk of `chunked_queries`."""


class GroupBatch(NamedTuple):
    """U groups of equal sizes: in each, M queries attend to N keys, or to the allowed ones of them.

    Queries and keys are indices into the flattened tokens.
    """

    query_UM: Tensor
    key_UN: Tensor
    allowed_UMN: Tensor | None = None

    def to(self, device: torch.device) -> "GroupBatch":
        """The same groups on a device."""
        return GroupBatch(*(None if x is None else x.to(device) for x in self))  # type: ignore[arg-type]


def mask_table(mask_mod: MaskMod, rows: int, tokens: int, device: torch.device) -> Tensor:
    """Evaluate a mask for all pairs, as allowed_BNN, query by key."""
    row_B = torch.arange(rows, device=device)
    token_N = torch.arange(tokens, device=device)
    return mask_mod(row_B[:, None, None], token_N[None, :, None], token_N[None, None, :])


def dense(allowed_BNN: Tensor) -> AttentionFn:
    """Compute all pairs and mask those that are not allowed."""
    return functools.partial(F.scaled_dot_product_attention, attn_mask=allowed_BNN[:, None])


def flex(mask_mod: MaskMod, rows: int, tokens: int, device: torch.device) -> AttentionFn:
    """FlexAttention: compiled on a GPU, uncompiled (for tests, without gradients) elsewhere.

    Heads narrower than `FLEX_MIN_HEAD` are computed densely. At PyTorch's limit of compiled variants
    FlexAttention would run uncompiled, with all scores of all heads in memory; `chunked_queries` is used
    instead.
    """
    from torch.nn.attention.flex_attention import create_block_mask  # imports half of the compiler

    def row_mask_mod(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        # A single row of positions applies to all clips.
        return mask_mod(row if rows > 1 else row * 0, query, key)

    mask = create_block_mask(
        row_mask_mod, B=rows if rows > 1 else None, H=None, Q_LEN=tokens, KV_LEN=tokens, device=device
    )
    run = _flex(is_compiled=device.type == "cuda")
    uncompiled = chunked_queries(mask_mod, rows, tokens, device)

    def attend(query_BANF: Tensor, key_BANF: Tensor, value_BANF: Tensor) -> Tensor:
        if query_BANF.shape[3] < FLEX_MIN_HEAD:
            return dense(mask_table(mask_mod, rows, tokens, device))(query_BANF, key_BANF, value_BANF)
        return run(query_BANF, key_BANF, value_BANF, mask, uncompiled)

    return attend


def chunked_queries(mask_mod: MaskMod, rows: int, tokens: int, device: torch.device) -> AttentionFn:
    """Masked attention in chunks of queries, recomputed in the backward pass: slow, with little memory."""

    def chunk(query_BAMF: Tensor, key_BANF: Tensor, value_BANF: Tensor, first: int) -> Tensor:
        row_B = torch.arange(rows, device=device)
        query_M = torch.arange(first, first + query_BAMF.shape[2], device=device)
        key_N = torch.arange(tokens, device=device)
        allowed_BMN = mask_mod(row_B[:, None, None], query_M[None, :, None], key_N[None, None, :])
        return dense(allowed_BMN)(query_BAMF, key_BANF, value_BANF)

    def attend(query_BANF: Tensor, key_BANF: Tensor, value_BANF: Tensor) -> Tensor:
        run = functools.partial(checkpoint, chunk, use_reentrant=False, preserve_rng_state=False)
        chunks = zip(query_BANF.split(QUERY_CHUNK, dim=2), range(0, tokens, QUERY_CHUNK), strict=True)
        return torch.cat(
            [run(query_BAMF, key_BANF, value_BANF, first) for query_BAMF, first in chunks], dim=2
        )

    return attend


@functools.cache
def _flex(*, is_compiled: bool) -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    def run(
        query_BANF: Tensor, key_BANF: Tensor, value_BANF: Tensor, mask: Any, uncompiled: AttentionFn
    ) -> Tensor:
        if is_compiled and not torch.compiler.is_compiling():
            warnings.warn(
                "FlexAttention is not compiled here, since PyTorch compiles it for a few shapes in a "
                "process; attention runs in chunks of queries, which is slow; fix: use fewer kinds and sizes",
                stacklevel=2,
            )
            return uncompiled(query_BANF, key_BANF, value_BANF)
        return flex_attention(query_BANF, key_BANF, value_BANF, block_mask=mask)

    return cast("Callable[..., Tensor]", torch.compile(run)) if is_compiled else run


def reordered(attention_fn: AttentionFn, order_BN: Tensor) -> AttentionFn:
    """Run attention on the tokens in another order, and restore the order of the result."""
    inverse_BN = order_BN.argsort(dim=1)

    def take(x_BANF: Tensor, index_BN: Tensor) -> Tensor:
        batch, heads, _, width = x_BANF.shape
        return x_BANF.gather(2, index_BN[:, None, :, None].expand(batch, heads, -1, width))

    def attend(query_BANF: Tensor, key_BANF: Tensor, value_BANF: Tensor) -> Tensor:
        ordered = (take(x_BANF, order_BN) for x_BANF in (query_BANF, key_BANF, value_BANF))
        return take(attention_fn(*ordered), inverse_BN)

    return attend


def per_clip(lengths: Sequence[int]) -> AttentionFn:
    """Attention within each clip of a packed row, for clips of these lengths."""

    def attend(query_BANF: Tensor, key_BANF: Tensor, value_BANF: Tensor) -> Tensor:
        clips = zip(*(x.split(list(lengths), dim=2) for x in (query_BANF, key_BANF, value_BANF)), strict=True)
        return torch.cat([F.scaled_dot_product_attention(*clip) for clip in clips], dim=2)

    return attend


def grouped(batches: Sequence[GroupBatch], rows: int, device: torch.device) -> AttentionFn:
    """One fused attention per batch of groups.

    Args:
        batches: indices into the `rows * N` flattened tokens; each token is a query in exactly one group.
        rows: 1 if the same groups apply to all clips, else the number of clips.
    """
    batches = [batch.to(device) for batch in batches]
    inverse_N = torch.cat([batch.query_UM.flatten() for batch in batches]).argsort()

    def attend(query_BANF: Tensor, key_BANF: Tensor, value_BANF: Tensor) -> Tensor:
        # X is B if rows is 1, else 1.
        flat = [_flattened(x_BANF, rows) for x_BANF in (query_BANF, key_BANF, value_BANF)]
        mixed_XNAF = torch.cat([_run(batch, *flat) for batch in batches], dim=1).index_select(1, inverse_N)
        return mixed_XNAF.view(query_BANF.shape[0], -1, *mixed_XNAF.shape[2:]).transpose(1, 2)

    return attend


def _flattened(x_BANF: Tensor, rows: int) -> Tensor:
    x_BNAF = x_BANF.transpose(1, 2)
    return x_BNAF.reshape(x_BNAF.shape[0] // rows, rows * x_BNAF.shape[1], *x_BNAF.shape[2:])


def _run(batch: GroupBatch, query_XNAF: Tensor, key_XNAF: Tensor, value_XNAF: Tensor) -> Tensor:
    rows, allowed = query_XNAF.shape[0], None
    if batch.allowed_UMN is not None:
        allowed = batch.allowed_UMN.repeat(rows, 1, 1)[:, None]
    query = _groups(query_XNAF, batch.query_UM)
    key, value = _groups(key_XNAF, batch.key_UN), _groups(value_XNAF, batch.key_UN)
    mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=allowed)
    return mixed.transpose(1, 2).reshape(rows, -1, *query_XNAF.shape[2:])


def _groups(x_XNAF: Tensor, index_UM: Tensor) -> Tensor:
    """The tokens of each group, (X * U, A, M, F)."""
    taken = x_XNAF.index_select(1, index_UM.flatten()).unflatten(1, index_UM.shape)
    return taken.flatten(0, 1).transpose(1, 2)


def group_batches(
    group_BN: Tensor, clip_BN: Tensor, is_register_BN: Tensor, *, clips: int
) -> list[GroupBatch]:
    """Batches of tokens that attend to their own group and to the registers of their clip.

    Registers attend to their whole clip. Groups of one size form one batch, so nothing is padded.

    Args:
        group_BN: int64, 0 or more.
        clip_BN: int64 from 0 and below `clips`; groups of different clips are different groups.
    """
    group_N, clip_N, is_register_N = group_BN.flatten(), clip_BN.flatten(), is_register_BN.flatten()
    labels = int(group_N.max()) + 1
    whole = _TokensByLabel.of(clip_N, clips)
    registers = _TokensByLabel.of(torch.where(is_register_N, clip_N, clips), clips)
    groups = _TokensByLabel.of(
        torch.where(is_register_N, clips * labels, clip_N * labels + group_N), clips * labels
    )
    batches = [
        GroupBatch(registers.take(clip_U, count), whole.take(clip_U, keys))
        for count, keys, clip_U in _by_size(registers.count_U, whole.count_U)
    ]
    for count, register_count, group_U in _by_size(
        groups.count_U, registers.count_U.repeat_interleave(labels)
    ):
        member_UM = groups.take(group_U, count)
        register_UR = registers.take(group_U // labels, register_count)
        batches.append(GroupBatch(member_UM, torch.cat([register_UR, member_UM], dim=1)))
    return batches


def chunk_batches(allowed_BNN: Tensor, order_BN: Tensor) -> list[GroupBatch]:
    """Chunks of queries in this order, each with the keys that any of its queries attends to."""
    batches = []
    for row, (allowed_NN, order_N) in enumerate(zip(allowed_BNN, order_BN, strict=True)):
        for query_M in order_N.split(GROUP_CHUNK):
            allowed_MN = allowed_NN[query_M]
            key_N = allowed_MN.any(dim=0).nonzero().flatten()
            first = row * len(order_N)
            batches.append(
                GroupBatch((first + query_M)[None], (first + key_N)[None], allowed_MN[:, key_N][None])
            )
    return batches


class _TokensByLabel(NamedTuple):
    """Tokens sorted by label: those of label u are `token_N[start_U[u] :][: count_U[u]]`."""

    token_N: Tensor
    start_U: Tensor
    count_U: Tensor

    @classmethod
    def of(cls, label_N: Tensor, labels: int) -> "_TokensByLabel":
        """Sort tokens by label; tokens with the label `labels` are left out."""
        count_U = label_N.bincount(minlength=labels + 1)[:labels]
        return cls(label_N.argsort(stable=True), count_U.cumsum(0) - count_U, count_U)

    def take(self, label_V: Tensor, count: int) -> Tensor:
        """The first `count` tokens of each of these labels."""
        return self.token_N[self.start_U[label_V][:, None] + torch.arange(count, device=label_V.device)]


def _by_size(count_U: Tensor, other_U: Tensor) -> Iterator[tuple[int, int, Tensor]]:
    """Nonempty labels, one item per pair of equal counts."""
    for count, other in torch.stack([count_U, other_U], dim=1)[count_U > 0].unique(dim=0).tolist():
        yield count, other, ((count_U == count) & (other_U == other)).nonzero().flatten()
