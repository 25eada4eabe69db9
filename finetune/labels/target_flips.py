"""Targets of mirrored clips: classes of left and right swap, horizontal components change their sign."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class TargetFlip:
    """Change of the targets of clips that were flipped left to right.

    Attributes:
        renumber: per target of class numbers, the new number of every class; negative numbers stay.
        permute: per target, for each place of its last dim the place whose value it gets.
        negate: per target, the places of its last dim that change their sign.
    """

    renumber: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    permute: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    negate: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def __call__(self, targets: Mapping[str, Tensor], flipped_B: Tensor) -> dict[str, Tensor]:
        """Return the targets of clips, changed where `flipped_B` is true."""
        if not flipped_B.any():
            return dict(targets)
        return {name: _where(flipped_B, self._flip(name, target), target) for name, target in targets.items()}

    def _flip(self, name: str, target: Tensor) -> Tensor:
        if name in self.renumber:
            number_Y = torch.tensor(self.renumber[name])
            return torch.where(target >= 0, number_Y[target.clamp(min=0)], target)
        if name in self.permute:
            return target[..., list(self.permute[name])]
        if name in self.negate:
            target = target.clone()
            target[..., list(self.negate[name])] *= -1
        return target


def swapped_classes(classes: Sequence[str], pairs: Sequence[Sequence[str]]) -> tuple[int, ...]:
    """Number that every class has after the classes of each pair were swapped.

    Raises:
        ValueError: a name is not one of the classes.
    """
    number_of = {name: number for number, name in enumerate(classes)}
    swapped = list(range(len(classes)))
    for first, second in pairs:
        for name in (first, second):
            if name not in number_of:
                shown = ", ".join(classes[:5]) + (", ..." if len(classes) > 5 else "")
                raise ValueError(
                    f"augment.flip_pairs: expected pairs of classes, got {name!r}; "
                    f"fix: take names of the training data ({shown})"
                )
        swapped[number_of[first]], swapped[number_of[second]] = number_of[second], number_of[first]
    return tuple(swapped)


def _where(is_first_B: Tensor, first: Tensor, second: Tensor) -> Tensor:
    return torch.where(is_first_B.view(-1, *[1] * (first.dim() - 1)), first, second)
