"""Ways to attend under a rule that says who looks at whom: all give the same, at different costs.

`dense` computes every pair. `grouped` computes jobs, each some queries and the keys that they need; their
sizes must be known on the CPU. `split_into` is for clips in a row and nothing else. `blockwise` is
FlexAttention, which on a GPU skips masked blocks of 128 x 128 pairs; `query_by_query` replaces FlexAttention
if PyTorch would not compile it.
"""

import functools
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

Look = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(query, key, value), each (B, A, N, F), to what the queries saw, (B, A, N, F)."""

Rule = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(row, query, key), int64 numbers that broadcast, to whether the query looks at the key."""

FLEX_LEAST_HEAD = 16
"""FlexAttention's kernels take no narrower heads."""

CHUNK = 64
"""Queries in a chunk: with more of them, more keys are taken along that only few of them look at."""

QUERIES_AT_ONCE = 512
"""Number of queries in one chunk of `query_by_query`; the mask has one row for each."""


class Job(NamedTuple):
    """U groups of equal sizes: in each, M queries look at its N keys, or at those of them that are allowed.

    Queries and keys are numbers in flattened tokens.
    """

    query_UM: Tensor
    key_UN: Tensor
    allowed_UMN: Tensor | None = None

    def on(self, device: torch.device) -> "Job":
        """The same, on that device."""
        allowed = None if self.allowed_UMN is None else self.allowed_UMN.to(device)
        return Job(self.query_UM.to(device), self.key_UN.to(device), allowed)


def table(rule: Rule, rows: int, tokens: int, device: torch.device) -> Tensor:
    """The rule written out, allowed_BNN, query by key."""
    row_B = torch.arange(rows, device=device)
    token_N = torch.arange(tokens, device=device)
    return rule(row_B[:, None, None], token_N[None, :, None], token_N[None, None, :])


def dense(allowed_BNN: Tensor) -> Look:
    """Every pair is computed, and those that are not allowed are masked away."""
    allowed_B1NN = allowed_BNN[:, None]

    def attend(query_BANF: Tensor, key_BANF: Tensor, value_BANF: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(query_BANF, key_BANF, value_BANF, attn_mask=allowed_B1NN)

    return attend


def blockwise(rule: Rule, rows: int, tokens: int, device: torch.device) -> Look:
    """FlexAttention: compiled on a GPU; elsewhere uncompiled, for tests of the rule and without gradients.

    Heads narrower than `FLEX_LEAST_HEAD` are computed densely. At PyTorch's limit of compiled variants
    FlexAttention would run uncompiled, with all scores of all heads in memory; `query_by_query` is used
    instead.
    """
    from torch.nn.attention.flex_attention import create_block_mask  # brings half of the compiler along

    def sees(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        # One row of places stands for every clip.
        return rule(row if rows > 1 else row * 0, query, key)

    mask = create_block_mask(
        sees, B=rows if rows > 1 else None, H=None, Q_LEN=tokens, KV_LEN=tokens, device=device
    )
    flex = _flex(is_compiled=device.type == "cuda")
    by_query = query_by_query(rule, rows, tokens, device)

    def attend(query_BANF: Tensor, key_BANF: Tensor, value_BANF: Tensor) -> Tensor:
        if query_BANF.shape[3] < FLEX_LEAST_HEAD:
            return dense(table(rule, rows, tokens, device))(query_BANF, key_BANF, value_BANF)
        return flex(query_BANF, key_BANF, value_BANF, mask, by_query)

    return attend


def query_by_query(rule: Rule, rows: int, tokens: int, device: torch.device) -> Look:
    """Masked attention in chunks of queries, recomputed in the backward pass: slow, with little memory."""

    def chunk(query_BAMF: Tensor, key_BANF: Tensor, value_BANF: Tensor, first: int) -> Tensor:
        row_B = torch.arange(rows, device=device)
        query_M = torch.arange(first, first + query_BAMF.shape[2], device=device)
        key_N = torch.arange(tokens, device=device)
        allowed_BMN = rule(row_B[:, None, None], query_M[None, :, None], key_N[None, None, :])
        return F.scaled_dot_product_attention(
            query_BAMF, key_BANF, value_BANF, attn_mask=allowed_BMN[:, None]
        )

    def attend(query_BANF: Tensor, key_BANF: Tensor, value_BANF: Tensor) -> Tensor:
        run = functools.partial(checkpoint, chunk, use_reentrant=False, preserve_rng_state=False)
        firsts = range(0, tokens, QUERIES_AT_ONCE)
        chunks = zip(query_BANF.split(QUERIES_AT_ONCE, dim=2), firsts, strict=True)
        seen = [run(query_BAMF, key_BANF, value_BANF, first) for query_BAMF, first in chunks]
        return torch.cat(seen, dim=2)

    return attend


@functools.cache
def _flex(*, is_compiled: bool) -> Callable[..., Tensor]:
    """FlexAttention, and the fallback if PyTorch does not compile it."""
    from torch.nn.attention.flex_attention import flex_attention

    def flex(query_BANF: Tensor, key_BANF: Tensor, value_BANF: Tensor, mask: Any, uncompiled: Look) -> Tensor:
        if is_compiled and not torch.compiler.is_compiling():
            warnings.warn(
                "FlexAttention is not compiled here, since PyTorch compiles it for a few shapes in a "
                "process; attention runs in chunks of queries, which is slow; fix: use fewer kinds and sizes",
                stacklevel=2,
            )
            return uncompiled(query_BANF, key_BANF, value_BANF)
        return flex_attention(query_BANF, key_BANF, value_BANF, block_mask=mask)

    return cast("Callable[..., Tensor]", torch.compile(flex)) if is_compiled else flex


def in_order(look: Look, order_BN: Tensor) -> Look:
    """Let `look` have the tokens in another order, in which those that see one another stand together."""
    back_BN = order_BN.argsort(dim=1)

    def attend(query_BANF: Tensor, key_BANF: Tensor, value_BANF: Tensor) -> Tensor:
        ordered = (_taken(x_BANF, order_BN) for x_BANF in (query_BANF, key_BANF, value_BANF))
        return _taken(look(*ordered), back_BN)

    return attend


def _taken(x_BANF: Tensor, order_BN: Tensor) -> Tensor:
    batch, heads, _, width = x_BANF.shape
    return x_BANF.gather(2, order_BN[:, None, :, None].expand(batch, heads, -1, width))


def split_into(lengths: Sequence[int]) -> Look:
    """Clips of these lengths stand one after another, and each sees itself alone."""

    def attend(query_BANF: Tensor, key_BANF: Tensor, value_BANF: Tensor) -> Tensor:
        clips = zip(*(x.split(list(lengths), dim=2) for x in (query_BANF, key_BANF, value_BANF)), strict=True)
        return torch.cat([F.scaled_dot_product_attention(*clip) for clip in clips], dim=2)

    return attend


def grouped(jobs: Sequence[Job], rows: int) -> Look:
    """Each job is one fused attention.

    Args:
        jobs: numbers in the `rows * N` flattened tokens; each token is a query in exactly one of them.
        rows: 1 where the same jobs hold for every clip, else the number of clips.
    """
    back_N = torch.cat([job.query_UM.flatten() for job in jobs]).argsort()

    def attend(query_BANF: Tensor, key_BANF: Tensor, value_BANF: Tensor) -> Tensor:
        # X is B where rows is 1, else 1.
        flat = [_flattened(x_BANF, rows) for x_BANF in (query_BANF, key_BANF, value_BANF)]
        seen_XNAF = torch.cat([_done(job, *flat) for job in jobs], dim=1).index_select(1, back_N)
        return seen_XNAF.view(len(query_BANF), -1, *seen_XNAF.shape[2:]).transpose(1, 2)

    return attend


def _flattened(x_BANF: Tensor, rows: int) -> Tensor:
    x_BNAF = x_BANF.transpose(1, 2)
    return x_BNAF.reshape(len(x_BNAF) // rows, rows * x_BNAF.shape[1], *x_BNAF.shape[2:])


def _done(job: Job, query_XNAF: Tensor, key_XNAF: Tensor, value_XNAF: Tensor) -> Tensor:
    allowed = None if job.allowed_UMN is None else job.allowed_UMN.repeat(len(query_XNAF), 1, 1)[:, None]
    query = _groups(query_XNAF, job.query_UM)
    key, value = _groups(key_XNAF, job.key_UN), _groups(value_XNAF, job.key_UN)
    seen = F.scaled_dot_product_attention(query, key, value, attn_mask=allowed)
    return seen.transpose(1, 2).reshape(len(query_XNAF), -1, *query_XNAF.shape[2:])


def _groups(x_XNAF: Tensor, index_UM: Tensor) -> Tensor:
    """The tokens of each group, (X * U, A, M, F)."""
    taken = x_XNAF.index_select(1, index_UM.flatten()).unflatten(1, index_UM.shape)
    return taken.flatten(0, 1).transpose(1, 2)


def group_jobs(group_BN: Tensor, clip_BN: Tensor, is_register_BN: Tensor, *, clips: int) -> list[Job]:
    """The jobs of tokens that see their own group and the registers of their clip, and are seen by these.

    Groups of one size are one job, so that nothing is padded.

    Args:
        group_BN: int64, 0 or more.
        clip_BN: int64 from 0 and below `clips`; groups of different clips are different groups.
    """
    group_N, clip_N, is_register_N = group_BN.flatten(), clip_BN.flatten(), is_register_BN.flatten()
    labels = int(group_N.max()) + 1
    whole = _Lists.of(clip_N, clips)
    registers = _Lists.of(torch.where(is_register_N, clip_N, clips), clips)
    groups = _Lists.of(torch.where(is_register_N, clips * labels, clip_N * labels + group_N), clips * labels)
    jobs = [
        Job(registers.take(clip_U, count), whole.take(clip_U, keys))
        for count, keys, clip_U in _by_size(registers.count_U, whole.count_U)
    ]
    registers_of_group = registers.count_U.repeat_interleave(labels)
    for count, registers_there, group_U in _by_size(groups.count_U, registers_of_group):
        members_UM = groups.take(group_U, count)
        registers_UR = registers.take(group_U // labels, registers_there)
        jobs.append(Job(members_UM, torch.cat([registers_UR, members_UM], dim=1)))
    return jobs


def chunk_jobs(allowed_BNN: Tensor, order_BN: Tensor) -> list[Job]:
    """The jobs of a rule written out: chunks of queries, each with the keys that any of it looks at."""
    jobs = []
    for row, (allowed_NN, order_N) in enumerate(zip(allowed_BNN, order_BN, strict=True)):
        for query_M in order_N.split(CHUNK):
            allowed_MN = allowed_NN[query_M]
            key_N = allowed_MN.any(dim=0).nonzero().flatten()
            first = row * len(order_N)
            jobs.append(Job((first + query_M)[None], (first + key_N)[None], allowed_MN[:, key_N][None]))
    return jobs


class _Lists(NamedTuple):
    """Tokens by label: those of label u are `token_N[start_U[u] :][: count_U[u]]`."""

    token_N: Tensor
    start_U: Tensor
    count_U: Tensor

    @classmethod
    def of(cls, label_N: Tensor, labels: int) -> "_Lists":
        """Tokens with a label of `labels` are left out."""
        count_U = label_N.bincount(minlength=labels + 1)[:labels]
        return cls(label_N.argsort(stable=True), count_U.cumsum(0) - count_U, count_U)

    def take(self, label_V: Tensor, count: int) -> Tensor:
        """The first `count` tokens of each of these labels."""
        return self.token_N[self.start_U[label_V][:, None] + torch.arange(count, device=label_V.device)]


def _by_size(count_U: Tensor, other_U: Tensor) -> Iterator[tuple[int, int, Tensor]]:
    """Labels that have any tokens, gathered where both of their counts are equal."""
    pairs_U2 = torch.stack([count_U, other_U], dim=1)
    for count, other in pairs_U2[count_U > 0].unique(dim=0).tolist():
        yield count, other, ((count_U == count) & (other_U == other)).nonzero().flatten()
