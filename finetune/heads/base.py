"""Heads: what turns an encoder's tokens into class scores."""

import torch
from torch import Tensor, nn

from kinemae.data_tools.components import Component, build_component
from kinemae.data_tools.randomness import ClipRandom

# Given by the data and the encoder, so a config must not set them.
_GIVEN = ("width", "classes")


class Head(nn.Module):
    """A head is built with `width` (of the encoder's tokens), `classes` and its own `head.args`.

    Attributes:
        needs_calibration: it wants to be shown training tokens before the first step.
    """

    needs_calibration = False

    def forward(
        self, tokens_BND: Tensor, draws: ClipRandom | None, weight_BN: Tensor | None = None
    ) -> Tensor:
        """Score the classes.

        Args:
            tokens_BND: each clip's tokens, after the encoder's last norm.
            draws: chance for dropout, one row a clip; None in evaluation.
            weight_BN: 1 for a token, 0 for padding behind the tokens of a clip that has fewer than
                others, which must not matter; None: all are tokens.

        Returns:
            logits_BY
        """
        raise NotImplementedError

    def calibrate(self, tokens_BND: Tensor, weight_BN: Tensor | None = None) -> None:
        """Look once, before the first step, at the tokens of some training clips.

        What is measured here is kept with the weights and stays as it is.
        """


class Standard(nn.Module):
    """Takes a measured mean away and divides by a measured deviation, value by value."""

    mean_D: Tensor
    deviation_D: Tensor

    def __init__(self, width: int):
        super().__init__()
        self.register_buffer("mean_D", torch.zeros(width))
        self.register_buffer("deviation_D", torch.ones(width))

    def measure(self, values_BD: Tensor) -> None:
        """Take mean and deviation from examples; a value that never differs is only centred."""
        deviation_D, mean_D = torch.std_mean(values_BD.float(), dim=0, unbiased=False)
        self.mean_D.copy_(mean_D)
        self.deviation_D.copy_(torch.where(deviation_D > 1e-6, deviation_D, 1.0))

    def forward(self, values_BD: Tensor) -> Tensor:
        return (values_BD - self.mean_D) / self.deviation_D


def build_head(component: Component, *, width: int, classes: int) -> Head:
    """Build the head that a config names, for an encoder and a set of classes.

    Raises:
        ValueError: no such head, or arguments it refuses.
    """
    for name in _GIVEN:
        if name in component.args:
            raise ValueError(
                f"head.args.{name} comes from the encoder and the data: remove it from the config"
            )
    complete = Component(name=component.name, args={**component.args, "width": width, "classes": classes})
    return build_component("kinemae.finetune.heads", complete, Head)
