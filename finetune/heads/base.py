"""Interface of heads: modules that map an encoder's tokens to class scores."""

import torch
from torch import Tensor, nn

from kinemae.data_tools.components import Component, build_component
from kinemae.data_tools.randomness import ClipRandom


class Head(nn.Module):
    """Base class. A head is built with `width` (of the encoder's tokens), `classes` and its own `head.args`.

    Attributes:
        needs_calibration: whether `calibrate` must be called before the first training step.
    """

    needs_calibration = False

    def forward(
        self, tokens_BND: Tensor, draws: ClipRandom | None, weight_BN: Tensor | None = None
    ) -> Tensor:
        """Compute class scores.

        Args:
            tokens_BND: each clip's tokens after the encoder's final norm.
            draws: random numbers for dropout, one row per clip; None in evaluation.
            weight_BN: 1 for a token, 0 for padding, which must not affect the scores; None: no padding.

        Returns:
            logits_BY
        """
        raise NotImplementedError

    def calibrate(self, tokens_BND: Tensor, weight_BN: Tensor | None = None) -> None:
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


def build_head(component: Component, *, width: int, classes: int) -> Head:
    """Build the head that a config names, for an encoder's width and a number of classes.

    Raises:
        ValueError: unknown head, or arguments that it rejects.
    """
    for name in ("width", "classes"):
        if name in component.args:
            raise ValueError(
                f"head.args.{name}: expected no such key, since the encoder and the data determine it; "
                "fix: remove it"
            )
    complete = Component(name=component.name, args={**component.args, "width": width, "classes": classes})
    return build_component("kinemae.finetune.heads", complete, Head)
