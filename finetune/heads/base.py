"""Interface of heads: modules that map an encoder's tokens to the values that a task needs."""

from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from kinemae.data_tools.components import Component, build_component
from kinemae.data_tools.randomness import ClipRandom


class Features(NamedTuple):
    """Output of the encoder for a batch of clips.

    Attributes:
        tokens_BND: the kept tokens, after the final norm, ordered by slice, row and column.
        weight_BN: 1 for a token, 0 for padding of clips that keep fewer tokens; None: no padding.
        threshold_loss_B: loss of the scorer's threshold, with `pruning.args.keep`; see `Scorer`.
        slices: number of time slices, each with N / slices tokens; 0 after pruning, which removes tokens.
        layers: tokens_BND of the blocks that the head's `layers` names, without the final norm.
    """

    tokens_BND: Tensor
    weight_BN: Tensor | None = None
    threshold_loss_B: Tensor | None = None
    slices: int = 0
    layers: tuple[Tensor, ...] = ()

    @property
    def kept_B(self) -> Tensor:
        """Number of kept tokens per clip, float32."""
        if self.weight_BN is not None:
            return self.weight_BN.float().sum(dim=1)
        clips, tokens = self.tokens_BND.shape[:2]
        return self.tokens_BND.new_full((clips,), tokens, dtype=torch.float32)

    @staticmethod
    def join(parts: Sequence["Features"]) -> "Features":
        """Concatenate the clips of several batches, padded to the longest."""
        longest = max(part.tokens_BND.shape[1] for part in parts)
        tokens, weights = [], []
        for part in parts:
            missing = longest - part.tokens_BND.shape[1]
            tokens.append(functional.pad(part.tokens_BND, (0, 0, 0, missing)))
            if part.weight_BN is not None:
                weights.append(functional.pad(part.weight_BN, (0, missing)))
        return Features(
            torch.cat(tokens),
            torch.cat(weights) if weights else None,
            slices=parts[0].slices,
            layers=tuple(torch.cat(layer) for layer in zip(*(part.layers for part in parts), strict=True)),
        )


class Head(nn.Module):
    """Base class. A head is built with `width` (of the encoder's tokens), `outputs` and its own `head.args`.

    Attributes:
        output: "clip" for values per clip, (B, outputs); "sequence" for values per time slice,
            (B, slices, outputs); "pyramid" for scored segments, see `PyramidHead`.
        needs_calibration: whether `calibrate` must be called before the first training step.
        layers: numbers of the encoder's blocks, from 0, whose tokens the head reads.
    """

    output: ClassVar[str] = "clip"
    needs_calibration = False
    layers: tuple[int, ...] = ()

    def forward(self, features: Features, draws: ClipRandom | None) -> Tensor:
        """Compute the output of a task: class scores, or other values.

        Args:
            features: the encoder's tokens; padding must not affect the output.
            draws: random numbers for dropout, one row per clip; None in evaluation.

        Returns:
            output_BY, or see `output`.
        """
        raise NotImplementedError

    def calibrate(self, features: Features) -> None:
        """Measure statistics of training tokens once; they are saved with the weights and stay fixed."""


class Standardize(nn.Module):
    """Subtract a measured mean and divide by a measured standard deviation, per feature."""

    mean_D: Tensor
    deviation_D: Tensor

    def __init__(self, width: int):
        super().__init__()
        self.register_buffer("mean_D", torch.zeros(width))
        self.register_buffer("deviation_D", torch.ones(width))

    def measure(self, values_BD: Tensor) -> None:
        """Take mean and deviation from examples; a constant feature is only centred."""
        deviation_D, mean_D = torch.std_mean(values_BD.float(), dim=0, unbiased=False)
        self.mean_D.copy_(mean_D)
        self.deviation_D.copy_(torch.where(deviation_D > 1e-6, deviation_D, 1.0))

    def forward(self, values_BD: Tensor) -> Tensor:
        return (values_BD - self.mean_D) / self.deviation_D


def build_head(component: Component, *, width: int, outputs: int, output: str = "clip") -> Head:
    """Build the head that a config names, for an encoder's width and a task's outputs.

    Args:
        outputs, output: number and kind of the values that the task needs, see `Task`.

    Raises:
        ValueError: unknown head, arguments that it rejects, or a head of another kind.
    """
    for name in ("width", "outputs"):
        if name in component.args:
            raise ValueError(
                f"head.args.{name}: expected no such key, since the encoder and the task determine it; "
                "fix: remove it"
            )
    complete = Component(name=component.name, args={**component.args, "width": width, "outputs": outputs})
    head = build_component("kinemae.finetune.heads", complete, Head)
    if head.output != output:
        raise ValueError(
            f"head.name: expected a head with one output per {output}, as the task needs it, got "
            f"{component.name} with one per {head.output}; fix: choose another head or task"
        )
    return head
