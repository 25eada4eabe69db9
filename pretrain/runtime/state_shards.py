"""What a checkpoint is made of: runs of flattened parameters, each lying whole on one process.

Nothing here knows of ZeRO or of the number of processes. Every ZeRO stage can say which runs it holds, and
can ask for those it needs, so a checkpoint is written and read at any stage by any number of processes.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

KINDS = ("weight", "exp_avg", "exp_avg_sq")

# (name, kind, start, stop) -> float32 values of that run, on the CPU.
ReadPiece = Callable[[str, str, int, int], Tensor]


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A run of one flattened parameter's values, held by this process.

    Attributes:
        name: the parameter's or buffer's name, as in the module's `named_parameters()` or `named_buffers()`.
        kind: "weight", or one of AdamW's two moments: "exp_avg", "exp_avg_sq".
        start: place of the first value in the flattened parameter.
        values_V: float32, contiguous: a view of live memory, not a copy.
    """

    name: str
    kind: str
    start: int
    values_V: Tensor

    @property
    def stop(self) -> int:
        """Place after the last value in the flattened parameter."""
        return self.start + self.values_V.numel()
