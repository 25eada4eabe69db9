"""Interface of heads: modules that map an encoder's tokens to the values that a task needs."""

from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from kinemae.data_tools.components import Component, accepts_argument, build_component
from kinemae.data_tools.config import require
from kinemae.data_tools.randomness import ClipRandom

_FOLDER = "kinemae.finetune.heads"


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

    @property
    def tokens_XD(self) -> Tensor:
        """The tokens of all clips in one row, without padding."""
        return (
            self.tokens_BND.flatten(0, 1) if self.weight_BN is None else self.tokens_BND[self.weight_BN > 0]
        )

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

    @staticmethod
    def concatenate(parts: Sequence["Features"]) -> "Features":
        """Concatenate the tokens of the same clips along time; the parts are consecutive times."""
        if len(parts) == 1:
            return parts[0]
        losses = [part.threshold_loss_B for part in parts if part.threshold_loss_B is not None]
        weights = [
            part.tokens_BND.new_ones(part.tokens_BND.shape[:2]).float()
            if part.weight_BN is None
            else part.weight_BN
            for part in parts
        ]
        is_padded = any(part.weight_BN is not None for part in parts)
        layers = zip(*(part.layers for part in parts), strict=True)
        return Features(
            torch.cat([part.tokens_BND for part in parts], dim=1),
            torch.cat(weights, dim=1) if is_padded else None,
            torch.stack(losses).mean(dim=0) if losses else None,
            slices=sum(part.slices for part in parts),
            layers=tuple(torch.cat(layer, dim=1) for layer in layers),
        )


class Head(nn.Module):
    """Base class. A head is built with `width` (of the encoder's tokens), `outputs` and its own `head.args`.

    Attributes:
        output: "clip" for values per clip, (B, outputs); "sequence" for values per time slice,
            (B, slices, outputs); "pyramid" for scored segments, see `PyramidHead`.
        needs_calibration: whether `calibrate` must be called before the first training step.
        needs_slices: whether the head needs the tokens of all slices, which pruning and merging remove.
        layers: the encoder's blocks whose tokens the head reads: numbers from 0, or from -1 for the last;
            or fractions of the depth. Empty: none besides the final tokens.
    """

    output: ClassVar[str] = "clip"
    needs_calibration = False
    needs_slices = False
    layers: tuple[int | float, ...] = ()

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


def pool_tokens(features: Features, pool: str, *, slices: int = 0) -> Tensor:
    """Pool the tokens of each clip, as pooled_BX.

    Args:
        pool: "mean", "statistics" for mean and standard deviation, concatenated, or "slices" for the means of
            `slices` equal parts of the clip's time, concatenated.
    """
    tokens_BND, weight_BN = features.tokens_BND, features.weight_BN
    if pool == "slices":
        assert features.slices, "TaskModel rejects pruning and merging with such a head"
        require(
            features.slices % slices == 0,
            "head.args.slices",
            f"divide the {features.slices} time slices of a clip",
            slices,
        )
        return tokens_BND.unflatten(1, (slices, -1)).mean(dim=2).flatten(1)
    if pool == "mean":
        return _mean(tokens_BND, weight_BN)
    if weight_BN is None:
        variance_BD, mean_BD = torch.var_mean(tokens_BND, dim=1, unbiased=False)
    else:
        mean_BD = _mean(tokens_BND, weight_BN)
        variance_BD = _mean((tokens_BND - mean_BD[:, None]).square(), weight_BN)
    # The square root's gradient is infinite at 0: the constant keeps it finite for equal tokens.
    return torch.cat([mean_BD, (variance_BD + 1e-6).sqrt()], dim=1)


def drop_values(values_BX: Tensor, rate: float, draws: ClipRandom | None, *, purpose: str) -> Tensor:
    """Apply dropout in training; `draws` is None in evaluation."""
    if draws is None or rate == 0:
        return values_BX
    is_kept_BX = draws.uniform(purpose, values_BX.shape[1:]) >= rate
    return values_BX * is_kept_BX / (1 - rate)


def input_norm(norm: str, width: int) -> "nn.LayerNorm | Standardize":
    """Build the norm of a head's input.

    Raises:
        ValueError: another norm than layer or standardize.
    """
    require(norm in ("layer", "standardize"), "head.args.norm", "be layer or standardize", norm)
    return nn.LayerNorm(width, eps=1e-6) if norm == "layer" else Standardize(width)


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


def build_head(
    component: Component,
    *,
    width: int,
    outputs: int,
    output: str = "clip",
    groups: Sequence[int] | None = None,
) -> Head:
    """Build the head that a config names, for an encoder's width and a task's outputs.

    Args:
        outputs, output: number and kind of the values that the task needs, see `Task`.
        groups: `Task.output_groups`; None: one group.

    Raises:
        ValueError: unknown head, arguments that it rejects, or a head of another kind.
    """
    given: dict[str, Any] = {"width": width, "outputs": outputs}
    if accepts_argument(_FOLDER, component, Head, "groups"):
        given["groups"] = tuple(groups or (outputs,))
    for name in ("width", "outputs", "groups"):
        if name in component.args:
            raise ValueError(
                f"head.args.{name}: expected no such key, since the encoder and the task determine it; "
                "fix: remove it"
            )
    complete = Component(name=component.name, args={**component.args, **given})
    head = build_component(_FOLDER, complete, Head)
    if head.output != output:
        raise ValueError(
            f"head.name: expected a head with one output per {output}, as the task needs it, got "
            f"{component.name} with one per {head.output}; fix: choose another head or task"
        )
    return head


def _mean(values_BND: Tensor, weight_BN: Tensor | None) -> Tensor:
    """Average each clip's tokens without its padding."""
    if weight_BN is None:
        return values_BND.mean(dim=1)
    fraction_BN1 = (weight_BN / weight_BN.sum(dim=1, keepdim=True))[..., None]
    return (values_BND * fraction_BN1.to(values_BND.dtype)).sum(dim=1)
