"""Resharding: each process reads its part of the files once, and the processes exchange the values.

A process that reads a file may not need its values: a checkpoint may come from another number of processes or
another ZeRO stage. So each process sends requests for its shards to the readers. The readers answer with
offsets in their streams, the concatenated values of their files. Then all processes read their streams block
by block, and exchange the values of each block. If no process needs values that another one reads, as in a
restart with the same processes and stage, there is no exchange.
"""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from kinemae.pretrain.runtime.processes import Processes
from kinemae.pretrain.runtime.tensor_shards import EXCHANGED_VALUES, ShardRange, ShardTable, TensorShard


@dataclass(frozen=True, kw_only=True)
class Source:
    """The files of a checkpoint, each of which one process reads.

    Attributes:
        table: the ranges of all files.
        own: the ranges in the files that this process reads, in the order of reading.
        reader_of: maps the name of a file to the rank of its reader.
        read_next: returns the given number of next values of `own`, float32 on the CPU.
    """

    table: ShardTable
    own: Sequence[ShardRange]
    reader_of: Callable[[str], int]
    read_next: Callable[[int], Tensor]


class _Piece(NamedTuple):
    """Consecutive values of a reader's stream that one process needs.

    Attributes:
        peer: rank of the reader, or on the reader rank of the process that needs the values.
        offset: of the first value in the reader's stream.
        into_V: the place of the values; None on the reader.
    """

    peer: int
    offset: int
    length: int
    into_V: Tensor | None = None


def reshard(
    shards: Sequence[TensorShard],
    source: Source,
    processes: Processes,
    *,
    exchanged_values: int = EXCHANGED_VALUES,
) -> None:
    """Collective. Fill this process's shards; shards of which the files hold nothing get zeros.

    Args:
        exchanged_values: values in one exchange, over all processes. The memory for an exchange is twice
            this on the process that needs the most.
    """
    requests, needed = _requests(shards, source, processes)
    asked = processes.all_to_all_rows(requests, width=3)
    place_of = _StreamPlaces(source)
    sent = [
        [_Piece(peer, place_of.offset(place, first), last - first) for place, first, last in rows]
        for peer, rows in enumerate(asked)
    ]
    answers = processes.all_to_all_rows([[(piece.offset,) for piece in row] for row in sent], width=1)
    received = [
        [_Piece(peer, offset, len(into_V), into_V) for (offset,), into_V in zip(rows, into, strict=True)]
        for peer, (rows, into) in enumerate(zip(answers, needed, strict=True))
    ]
    rank = processes.rank
    is_exchanged = processes.maximum(int(any(row for peer, row in enumerate(sent) if peer != rank))) > 0
    size = max(1, exchanged_values // processes.world) if is_exchanged else exchanged_values
    blocks = -(-place_of.total // size)
    own, sent[rank], received[rank] = received[rank], [], []
    own_by_block, sent_by_block, received_by_block = (_by_block(one, size) for one in ([own], sent, received))
    for block in range(processes.maximum(blocks) if is_exchanged else blocks):
        start = min(block * size, place_of.total)
        values_V = source.read_next(min(size, place_of.total - start))
        for piece in own_by_block[block]:
            _copy(values_V[piece.offset - start :], piece)
        if is_exchanged:
            runs = [values_V[one.offset - start :][: one.length] for one in sent_by_block[block]]
            _exchange(runs, sent_by_block[block], received_by_block[block], processes)


def _requests(
    shards: Sequence[TensorShard], source: Source, processes: Processes
) -> tuple[list[list[tuple[int, ...]]], list[list[Tensor]]]:
    """By reader: (place in the table, first, last) of the values that are needed here, and their places."""
    rows: list[list[tuple[int, ...]]] = [[] for _ in range(processes.world)]
    needed: list[list[Tensor]] = [[] for _ in range(processes.world)]
    for shard in shards:
        runs = source.table.runs(shard.kind, shard.name, shard.start, shard.stop)
        if not runs:
            shard.values_V.zero_()
        for run in runs:
            first, last = max(shard.start, run.start), min(shard.stop, run.stop)
            if first < last:
                reader = source.reader_of(run.file)
                rows[reader].append((source.table.place(shard.kind, shard.name), first, last))
                needed[reader].append(shard.values_V[first - shard.start : last - shard.start])
    return rows, needed


class _StreamPlaces:
    """Offsets of values in this process's stream.

    Attributes:
        total: number of values in the stream.
    """

    def __init__(self, source: Source):
        runs: dict[int, list[tuple[int, int]]] = defaultdict(list)
        self.total = 0
        for one in source.own:
            runs[source.table.place(one.kind, one.name)].append((one.start, self.total))
            self.total += one.stop - one.start
        self._runs = {place: sorted(found) for place, found in runs.items()}

    def offset(self, place: int, value: int) -> int:
        """Offset of one value of a parameter; a file holds it."""
        runs = self._runs[place]
        start, offset = runs[bisect_right(runs, (value, self.total)) - 1]
        return offset + value - start


def _by_block(rows: Iterable[Sequence[_Piece]], size: int) -> dict[int, list[_Piece]]:
    """Cut pieces at the borders of blocks; in a block, order them by peer and offset."""
    found: dict[int, list[_Piece]] = defaultdict(list)
    for piece in sorted((piece for row in rows for piece in row), key=lambda piece: piece[:2]):
        for first, last in _cuts(piece, size):
            into_V = (
                None if piece.into_V is None else piece.into_V[first - piece.offset : last - piece.offset]
            )
            found[first // size].append(_Piece(piece.peer, first, last - first, into_V))
    return found


def _cuts(piece: _Piece, size: int) -> Iterator[tuple[int, int]]:
    first, end = piece.offset, piece.offset + piece.length
    while first < end:
        last = min(end, (first // size + 1) * size)
        yield first, last
        first = last


def _exchange(
    runs: Sequence[Tensor], sent: Sequence[_Piece], received: Sequence[_Piece], processes: Processes
) -> None:
    """Send the values of one block and copy the received ones to their places."""
    counts = [[0] * processes.world for _ in range(2)]
    for row, pieces in zip(counts, (sent, received), strict=True):
        for piece in pieces:
            row[piece.peer] += piece.length
    own_V = torch.cat([torch.empty(0), *runs]).to(processes.device)
    values_V = processes.all_to_all(own_V, sent=counts[0], received=counts[1])
    place = 0
    for piece in received:
        _copy(values_V[place:], piece)
        place += piece.length


def _copy(values_V: Tensor, piece: _Piece) -> None:
    assert piece.into_V is not None
    piece.into_V.copy_(values_V[: piece.length])
