"""What all processes agree on at every step, one step late, so that nobody waits for it.

At the end of a step each process says what it knows; at the end of the next one all read the same answer. So
a signal that one process got stops all of them at the same step, and a checkpoint that is written in the
background is committed by all at the same step.
"""

from dataclasses import dataclass

from kinemae.pretrain.runtime.processes import LargestOf, Processes


@dataclass(frozen=True, kw_only=True)
class Agreed:
    """The answer.

    Attributes:
        stop: the exit code that a stop was asked for with, the largest where there are several; 0 for none.
        is_writing: whether some process is still writing its part of a checkpoint.
    """

    stop: int = 0
    is_writing: bool = True


class Agreement:
    """Asks all processes at the end of a step and reads the answer at the end of the next.

    Every process must call both at the same steps.
    """

    def __init__(self, processes: Processes):
        self._largest = LargestOf(processes)
        self._is_asked = False

    def ask(self, *, stop: int, is_writing: bool) -> None:
        """Say what this process knows. Does not wait."""
        self._largest.start([stop, int(is_writing)])
        self._is_asked = True

    def answer(self) -> Agreed:
        """What all said when they were last asked; before that, nothing in particular."""
        if not self._is_asked:
            return Agreed()
        self._is_asked = False
        stop, is_writing = self._largest.result()
        return Agreed(stop=stop, is_writing=bool(is_writing))
