"""Pixel targets: the wanted patches themselves, by default with their own mean and contrast taken away."""

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain.model.tokens import COLOURS, Patch, TokenGrid, denormalise, normalise, take_patches, to_bytes
from pretrain.targets.base import Target

EPS = 1e-6
Normalisation = Literal["channel", "patch", "none"]


class PixelTarget(Target):
    """Predicts pixels under the mean squared error.

    Args:
        normalise: "channel": each colour of each patch is brought to mean 0 and deviation 1, with the
            unbiased variance, as (x - mean) / (sqrt(var) + 1e-6) on a scale of 0 to 1 (VideoMAE,
            arXiv 2203.12602).
            "patch": all values of a patch together, (x - mean) / sqrt(var + 1e-6) (MAE-ST, arXiv 2205.09113;
            on the same scale, where MAE-ST has a slightly different one).
            "none": pixels in the units of the encoder's input.
    """

    def __init__(self, *, normalise: str = "channel"):
        if normalise not in get_args(Normalisation):
            known = ", ".join(get_args(Normalisation))
            raise ValueError(f"target.args.normalise must be one of {known}, got {normalise!r}")
        self.normalise = normalise

    def values(self, patch: Patch) -> int:
        """See `Target.values`."""
        return patch[0] * patch[1] * patch[2] * COLOURS

    def __call__(self, clip_BCTHW: Tensor, wanted_BM: Tensor, *, patch: Patch) -> Tensor:
        """See `Target.__call__`."""
        patches_BMP = take_patches(clip_BCTHW, wanted_BM, patch)
        if self.normalise == "none":
            return normalise(patches_BMP)
        grouped = self._group(patches_BMP)
        mean, spread = self._statistics(grouped)
        return grouped.sub_(mean).div_(spread).flatten(2)

    def loss(self, prediction_BMP: Tensor, target_BMP: Tensor) -> Tensor:
        """See `Target.loss`."""
        return F.mse_loss(prediction_BMP.float(), target_BMP, reduction="none").mean(dim=(1, 2))

    def to_pixels(
        self,
        prediction_BMP: Tensor,
        clip_BCTHW: Tensor,
        *,
        wanted_BM: Tensor,
        visible_BK: Tensor | None,
        patch: Patch,
    ) -> Tensor:
        """See `Target.to_pixels`. Without the true statistics, those of the visible patches around are used.

        A wanted patch's mean and deviation are then the average of the visible patches', each weighed by one
        over its squared distance in tokens: near ones decide, and all of them help where none is near.
        """
        if self.normalise == "none":
            return to_bytes(denormalise(prediction_BMP))
        source_BK = wanted_BM if visible_BK is None else visible_BK
        mean, spread = self._statistics(self._group(take_patches(clip_BCTHW, source_BK, patch)))
        if visible_BK is not None:
            weight_BMK = _nearness(wanted_BM, visible_BK, clip_BCTHW, patch)
            mean, spread = _blend(weight_BMK, mean), _blend(weight_BMK, spread)
        grouped = prediction_BMP.float().unflatten(2, (-1, self._colours))
        return to_bytes((grouped * spread + mean).flatten(2))

    @property
    def _colours(self) -> int:
        """How many colours have statistics of their own."""
        return COLOURS if self.normalise == "channel" else 1

    def _group(self, patches_BMP: Tensor) -> Tensor:
        """Pixels on a scale of 0 to 1, as (B, M, pixels, colours)."""
        return patches_BMP.float().mul_(1 / 255).unflatten(2, (-1, self._colours))

    def _statistics(self, grouped: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and the deviation to divide by, each (B, M, 1, colours)."""
        variance, mean = torch.var_mean(grouped, dim=2, keepdim=True, unbiased=grouped.shape[2] > 1)
        return mean, variance.sqrt() + EPS if self.normalise == "channel" else (variance + EPS).sqrt()


def _nearness(wanted_BM: Tensor, visible_BK: Tensor, clip_BCTHW: Tensor, patch: Patch) -> Tensor:
    """Weights of the visible tokens for each wanted one, as weight_BMK with rows that sum to 1."""
    frames, height, width = clip_BCTHW.shape[2:]
    grid = TokenGrid(frames // patch[0], height // patch[1], width // patch[2])
    distance_BMK = torch.cdist(_places(wanted_BM, grid), _places(visible_BK, grid))
    weight_BMK = 1 / distance_BMK.square().clamp(min=EPS)
    return weight_BMK / weight_BMK.sum(dim=2, keepdim=True)


def _places(index_BK: Tensor, grid: TokenGrid) -> Tensor:
    """Coordinates (t, h, w) of tokens, as float32 (B, K, 3)."""
    row_BK = index_BK.div(grid.w, rounding_mode="floor")
    slice_BK = row_BK.div(grid.h, rounding_mode="floor")
    return torch.stack([slice_BK, row_BK % grid.h, index_BK % grid.w], dim=2).float()


def _blend(weight_BMK: Tensor, statistic: Tensor) -> Tensor:
    """Average the visible patches' (B, K, 1, colours) into the wanted patches' (B, M, 1, colours)."""
    return (weight_BMK @ statistic.squeeze(2)).unsqueeze(2)
