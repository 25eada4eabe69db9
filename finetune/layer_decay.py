"""Layer-wise learning rate decay: the nearer a layer is to the pixels, the less it moves.

As in BEiT and VideoMAE: a pretrained encoder of depth L has layers 0 (the embedding), 1 .. L (the blocks)
and L + 1 (its last norm and the head); layer l learns at `decay ** (L + 1 - l)` times the rate. A learned
scorer of tokens stands at the bottom but is often new, so it learns like the head.
"""

import re
from collections.abc import Callable

_BLOCK = re.compile(r"encoder\.blocks\.(\d+)\.")
_TOP = ("head.", "encoder.norm.", "encoder.scorer.")


def layer_of(name: str, depth: int) -> int:
    """The layer, from 0 to depth + 1, that a parameter of the classifier belongs to."""
    block = _BLOCK.match(name)
    if block:
        return int(block.group(1)) + 1
    return depth + 1 if name.startswith(_TOP) else 0


def layer_scale(decay: float, depth: int) -> Callable[[str], float]:
    """The factor on the learning rate as a function of a parameter's name."""
    return lambda name: decay ** (depth + 1 - layer_of(name, depth))
