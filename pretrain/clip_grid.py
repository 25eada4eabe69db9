"""A sheet of clips: a row for each clip, a column for each way to look at it, animated."""

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
NOT_ASKED: Colour = (70, 0, 120)
_TINT_SHARE = 0.6
_SMALLEST_SIDE_PX = 128
_GAP_PX = 4
_LINE_PX = 15


@dataclass(frozen=True, kw_only=True, eq=False)
class Column:
    """A way to look at the clips.

    Attributes:
        clip_BCTHW: uint8 RGB.
        key: what its tints mean, each with its colour.
    """

    title: str
    clip_BCTHW: Tensor
    key: tuple[tuple[str, Colour], ...] = ()


def draw_sheet(columns: Sequence[Column]) -> np.ndarray:
    """Lay the columns side by side under their titles, as frames_THWC uint8."""
    clips, channels, frames, height, width = columns[0].clip_BCTHW.shape
    scale = max(1, -(-_SMALLEST_SIDE_PX // height))
    cell_h, cell_w = height * scale + _GAP_PX, width * scale + _GAP_PX
    head_HWC = _head(columns, cell_w)
    head_h = len(head_HWC)
    sheet_THWC = np.full((frames, head_h + clips * cell_h, len(columns) * cell_w, channels), 255, np.uint8)
    sheet_THWC[:, :head_h] = head_HWC
    for x, column in enumerate(columns):
        big_BCTHW = column.clip_BCTHW.repeat_interleave(scale, dim=3).repeat_interleave(scale, dim=4)
        for y, clip_THWC in enumerate(big_BCTHW.permute(0, 2, 3, 4, 1).cpu().numpy()):
            top, left = head_h + y * cell_h, x * cell_w
            sheet_THWC[:, top : top + height * scale, left : left + width * scale] = clip_THWC
    return sheet_THWC


def draw_moments(columns: Sequence[Column], frames: Sequence[int]) -> np.ndarray:
    """The same as one picture_HWC: each clip has a row for each of some of its frames."""
    still = [
        replace(
            column, clip_BCTHW=column.clip_BCTHW[:, :, list(frames)].transpose(1, 2).flatten(0, 1)[:, :, None]
        )
        for column in columns
    ]
    return draw_sheet(still)[0]


def put(patches_BNP: Tensor, index_BK: Tensor, values_BKP: Tensor) -> Tensor:
    """A copy of patches with the named tokens replaced."""
    return patches_BNP.scatter(1, index_BK[..., None].expand_as(values_BKP), values_BKP.to(patches_BNP.dtype))


def covered(patches_BNP: Tensor, is_covered_BN: Tensor) -> Tensor:
    """A copy of uint8 patches with some tokens plain grey."""
    return torch.where(is_covered_BN[..., None], torch.full_like(patches_BNP, HIDDEN[0]), patches_BNP)


def tint(patches_BNP: Tensor, is_tinted_BN: Tensor, colour: Colour) -> Tensor:
    """A copy of uint8 patches with some tokens tinted, their content still to be made out."""
    colour_C = torch.tensor(colour, dtype=torch.float32, device=patches_BNP.device)
    pixels = patches_BNP.unflatten(2, (-1, COLOURS)).float()
    tinted_BNP = (pixels + _TINT_SHARE * (colour_C - pixels)).round().to(torch.uint8).flatten(2)
    return torch.where(is_tinted_BN[..., None], tinted_BNP, patches_BNP)


def named_tokens(index_BK: Tensor, tokens: int) -> Tensor:
    """Whether each of the grid's tokens is in the list, is_named_BN."""
    is_named_BN = torch.zeros((len(index_BK), tokens), dtype=torch.bool, device=index_BK.device)
    return is_named_BN.scatter(1, index_BK, value=True)


def _head(columns: Sequence[Column], cell_w: int) -> np.ndarray:
    """The titles, and below them the keys where there are any, as head_HWC."""
    lines = 1 + max(len(column.key) for column in columns)
    strip = Image.new("RGB", (len(columns) * cell_w, lines * _LINE_PX + 2), "white")
    pen = ImageDraw.Draw(strip)
    font = ImageFont.load_default(size=12)
    for x, column in enumerate(columns):
        left = x * cell_w + 2
        pen.text((left, 0), column.title, fill="black", font=font)
        for y, (meaning, colour) in enumerate(column.key, start=1):
            top = y * _LINE_PX
            pen.rectangle((left, top + 3, left + 9, top + 12), fill=colour)
            pen.text((left + 14, top), meaning, fill="black", font=font)
    return np.asarray(strip)
