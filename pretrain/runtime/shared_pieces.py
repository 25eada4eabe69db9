"""Replicated pieces, as at ZeRO 0: each process saves and reads its share of them."""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate

import torch

from kinemae.pretrain.runtime.processes import Processes
from kinemae.pretrain.runtime.state_shards import Piece, ReadPiece

# Values in one exchange, over all processes: 64 MiB of float32.
_EXCHANGED_VALUES = 1 << 24


def share_of(pieces: Sequence[Piece], rank: int, world: int) -> list[Piece]:
    """This process's share of the replicated pieces: runs of equal length, for any lengths of the pieces."""
    line = _Line(pieces)
    return list(line.runs(*line.share(rank, world)))


def load_shared(
    pieces: Sequence[Piece],
    read: ReadPiece,
    processes: Processes,
    *,
    exchanged_values: int = _EXCHANGED_VALUES,
) -> None:
    """Collective. Fill replicated pieces; each process reads only its share of the bytes.

    The shares are then exchanged. Values are unchanged, so the result equals that of reading everything.
    """
    rank, world = processes.rank, processes.world
    for piece in share_of(pieces, rank, world):
        piece.values_V.copy_(read(piece.name, piece.kind, piece.start, piece.stop))
    line = _Line(pieces)
    if world == 1 or not line.total:
        return
    shares = [line.share(other, world) for other in range(world)]
    longest = max(stop - start for start, stop in shares)
    block = min(longest, max(1, exchanged_values // world))
    own_V = torch.zeros(block, device=pieces[0].values_V.device)
    for offset in range(0, longest, block):
        runs = [(min(start + offset, stop), min(start + offset + block, stop)) for start, stop in shares]
        line.copy_to(own_V, *runs[rank])
        for other, row_V in enumerate(processes.all_gather(own_V)):
            if other != rank:
                line.copy_from(row_V, *runs[other])


class _Line:
    """Concatenated pieces, addressed by offset."""

    def __init__(self, pieces: Sequence[Piece]):
        self._pieces = pieces
        self._starts = [0, *accumulate(piece.values_V.numel() for piece in pieces)]
        self.total = self._starts[-1]

    def share(self, rank: int, world: int) -> tuple[int, int]:
        return self.total * rank // world, self.total * (rank + 1) // world

    def runs(self, first: int, last: int) -> Iterator[Piece]:
        """The parts of pieces between two offsets."""
        number = max(bisect_right(self._starts, first) - 1, 0)
        while first < last:
            piece, begin = self._pieces[number], first - self._starts[number]
            end = min(last - self._starts[number], piece.values_V.numel())
            if begin < end:
                values_V = piece.values_V[begin:end]
                yield Piece(name=piece.name, kind=piece.kind, start=piece.start + begin, values_V=values_V)
            first = self._starts[number] + max(end, begin)
            number += 1

    def copy_to(self, block_V: torch.Tensor, first: int, last: int) -> None:
        place = 0
        for run in self.runs(first, last):
            block_V[place : place + len(run.values_V)].copy_(run.values_V)
            place += len(run.values_V)

    def copy_from(self, block_V: torch.Tensor, first: int, last: int) -> None:
        place = 0
        for run in self.runs(first, last):
            run.values_V.copy_(block_V[place : place + len(run.values_V)])
            place += len(run.values_V)
