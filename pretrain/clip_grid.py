"""Animated grid of clips: a row for each clip, a column for each view of it; heat maps over clips."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from kinemae.pretrain.model.tokens import COLOURS

Colour = tuple[int, int, int]

FPS = 6.0
HIDDEN: Colour = (128, 128, 128)
PRUNED: Colour = (225, 40, 40)
PRUNED_HIDDEN: Colour = (40, 90, 235)
NOT_PREDICTED: Colour = (70, 0, 120)
_TINT_FRACTION = 0.6
_HEAT_FRACTION = 0.7
_DARK_FRACTION = 0.25
_HEAT = ((0, 0, 4), (66, 10, 104), (147, 38, 103), (221, 81, 58), (252, 165, 10), (252, 255, 164))
"""Colours of a heat map at equal steps, increasing in lightness like matplotlib's inferno."""
_SMALLEST_SIDE_PX = 128
_GAP_PX = 4
_LINE_PX = 15


@dataclass(frozen=True, kw_only=True, eq=False)
class Column:
    """One view of the clips.

    Attributes:
        clip_BCTHW: uint8 RGB.
        legend: the meaning and colour of each tint; without a colour a line of text.
        scale: the values of the lowest and the highest colour of a heat map.
    """

    title: str
    clip_BCTHW: Tensor
    legend: tuple[tuple[str, Colour | None], ...] = ()
    scale: tuple[str, str] | None = None


def draw_grid(columns: Sequence[Column]) -> np.ndarray:
    """Draw the columns side by side under their titles, as frames_THWC uint8."""
    clips, channels, frames, height, width = columns[0].clip_BCTHW.shape
    scale = max(1, -(-_SMALLEST_SIDE_PX // height))
    cell_h, cell_w = height * scale + _GAP_PX, width * scale + _GAP_PX
    head_HWC = _head(columns, cell_w)
    head_h = len(head_HWC)
    grid_THWC = np.full((frames, head_h + clips * cell_h, len(columns) * cell_w, channels), 255, np.uint8)
    grid_THWC[:, :head_h] = head_HWC
    for x, column in enumerate(columns):
        big_BCTHW = column.clip_BCTHW.repeat_interleave(scale, dim=3).repeat_interleave(scale, dim=4)
        for y, clip_THWC in enumerate(big_BCTHW.permute(0, 2, 3, 4, 1).cpu().numpy()):
            top, left = head_h + y * cell_h, x * cell_w
            grid_THWC[:, top : top + height * scale, left : left + width * scale] = clip_THWC
    return grid_THWC


def draw_frames(columns: Sequence[Column], frames: Sequence[int]) -> np.ndarray:
    """Draw some frames of each clip as rows of one image_HWC."""
    still = [
        replace(
            column, clip_BCTHW=column.clip_BCTHW[:, :, list(frames)].transpose(1, 2).flatten(0, 1)[:, :, None]
        )
        for column in columns
    ]
    return draw_grid(still)[0]


def replace_tokens(patches_BNP: Tensor, index_BK: Tensor, values_BKP: Tensor) -> Tensor:
    """A copy of patches with the listed tokens replaced."""
    return patches_BNP.scatter(1, index_BK[..., None].expand_as(values_BKP), values_BKP.to(patches_BNP.dtype))


def gray_out(patches_BNP: Tensor, is_gray_BN: Tensor) -> Tensor:
    """A copy of uint8 patches with some tokens plain grey."""
    return torch.where(is_gray_BN[..., None], torch.full_like(patches_BNP, HIDDEN[0]), patches_BNP)


def tint(patches_BNP: Tensor, is_tinted_BN: Tensor, colour: Colour | Tensor) -> Tensor:
    """A copy of uint8 patches with some tokens tinted; their content stays visible.

    Args:
        colour: of all tokens, or colour_BNC.
    """
    colour_C = torch.as_tensor(colour, dtype=torch.float32, device=patches_BNP.device)
    pixels = patches_BNP.unflatten(2, (-1, COLOURS)).float()
    tinted_BNP = (
        (pixels + _TINT_FRACTION * (colour_C[..., None, :] - pixels)).round().to(torch.uint8).flatten(2)
    )
    return torch.where(is_tinted_BN[..., None], tinted_BNP, patches_BNP)


def heat_colours(fraction_X: Tensor) -> Tensor:
    """Colours of fractions from 0 to 1, clamped, as float32 colour_XC from 0 to 255."""
    colours = torch.tensor(_HEAT, dtype=torch.float32, device=fraction_X.device)
    place_X = fraction_X.clamp(0, 1) * (len(_HEAT) - 1)
    below_X = place_X.long().clamp(max=len(_HEAT) - 2)
    return torch.lerp(colours[below_X], colours[below_X + 1], (place_X - below_X)[..., None])


def heat_map(patches_BNP: Tensor, fraction_BN: Tensor) -> Tensor:
    """A grey copy of uint8 patches, each token in the colour of its fraction, or darkened if that is NaN."""
    pixels = patches_BNP.unflatten(2, (-1, COLOURS)).float()
    grey = pixels.mean(dim=3, keepdim=True)
    is_known_BN11 = ~fraction_BN.isnan()[..., None, None]
    heat = grey + _HEAT_FRACTION * (heat_colours(fraction_BN.nan_to_num())[:, :, None] - grey)
    return torch.where(is_known_BN11, heat, _DARK_FRACTION * grey).round().to(torch.uint8).flatten(2)


def token_mask(index_BK: Tensor, tokens: int) -> Tensor:
    """Convert an index list to a mask over the grid's tokens, is_listed_BN."""
    is_listed_BN = torch.zeros((len(index_BK), tokens), dtype=torch.bool, device=index_BK.device)
    return is_listed_BN.scatter(1, index_BK, value=True)


def _head(columns: Sequence[Column], cell_w: int) -> np.ndarray:
    """Draw the titles, with the legends below them, as head_HWC."""
    lines = 1 + max(len(column.legend) + (column.scale is not None) for column in columns)
    strip = Image.new("RGB", (len(columns) * cell_w, lines * _LINE_PX + 2), "white")
    pen = ImageDraw.Draw(strip)
    font = ImageFont.load_default(size=12)
    for x, column in enumerate(columns):
        left = x * cell_w + 2
        pen.text((left, 0), column.title, fill="black", font=font)
        for y, (meaning, colour) in enumerate(column.legend, start=1):
            top = y * _LINE_PX
            if colour is not None:
                pen.rectangle((left, top + 3, left + 9, top + 12), fill=colour)
            pen.text((left + (0 if colour is None else 14), top), meaning, fill="black", font=font)
        if column.scale is not None:
            _draw_scale(strip, column.scale, left, (len(column.legend) + 1) * _LINE_PX, cell_w)
    return np.asarray(strip)


def _draw_scale(strip: Image.Image, scale: tuple[str, str], left: int, top: int, width: int) -> None:
    """Draw the colours of a heat map between their lowest and highest value."""
    pen, font = ImageDraw.Draw(strip), ImageFont.load_default(size=11)
    low, high = (int(pen.textlength(text, font=font)) + 4 for text in scale)
    bar = width - low - high - 8
    colour_XC = heat_colours(torch.linspace(0, 1, bar)).round().to(torch.uint8)
    strip.paste(Image.fromarray(colour_XC[None].expand(9, -1, -1).numpy()), (left + low, top + 3))
    pen.text((left, top), scale[0], fill="black", font=font)
    pen.text((left + low + bar + 4, top), scale[1], fill="black", font=font)
