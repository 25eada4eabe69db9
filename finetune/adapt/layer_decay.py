"""Layer-wise learning rate decay (layer decay), as in BEiT and VideoMAE.

The layers of an encoder of depth L are 0 (embedding), 1 to L (blocks) and L + 1 (final norm and head). The
learning rate of layer l is multiplied by `decay ** (L + 1 - l)`. A token scorer is often untrained, so it has
the head's rate.
"""

import re
from collections.abc import Callable

_BLOCK = re.compile(r"encoder\.blocks\.(\d+)\.")
_TOP = ("head.", "task.", "encoder.norm.", "encoder.scorer.")


def layer_of(name: str, depth: int) -> int:
    """Return the layer, from 0 to depth + 1, of a classifier's parameter."""
    block = _BLOCK.match(name)
    if block:
        return int(block.group(1)) + 1
    return depth + 1 if name.startswith(_TOP) else 0


def layer_scale(decay: float, depth: int, *, head: float = 1.0) -> Callable[[str], float]:
    """Return the function that maps a parameter's name to its learning rate factor.

    Args:
        head: factor of the head.
    """

    def scale(name: str) -> float:
        return decay ** (depth + 1 - layer_of(name, depth)) * (head if name.startswith("head.") else 1.0)

    return scale
