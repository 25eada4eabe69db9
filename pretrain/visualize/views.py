"""Views of a trained model: for each window of a video some columns, such as maps over its clip."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from kinemae.pretrain.clip_grid import Column, heat_map
from kinemae.pretrain.model.encoder import Encoder
from kinemae.pretrain.model.tokens import Patch, TokenGrid, patchify, unpatchify
from kinemae.pretrain.visualize.recording import ForwardPass, record

_LOWEST, _HIGHEST = 0.01, 0.99  # quantiles of the measured values at the ends of a colour scale

_FRAME = (0, 255, 70)  # colour of the frame around a patch


@dataclass(frozen=True, kw_only=True, eq=False)
class Subject:
    """The model to look at, in evaluation mode.

    Attributes:
        run: runs the model on clip_1CTHW, uint8 RGB; it may call the encoder on several parts of the clip.
        mean, std: normalization of pixels.
        chunks: number of these parts, along time.
    """

    encoder: Encoder
    run: Callable[[Tensor], object]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    chunks: int = 1

    @property
    def patch(self) -> Patch:
        """Size of a patch."""
        return self.encoder.shape.patch

    @property
    def grid(self) -> TokenGrid:
        """The token grid of a whole clip, all chunks together."""
        grid = self.encoder.grid
        return TokenGrid(self.chunks * grid.t, grid.h, grid.w)


class Window:
    """A clip of a video.

    Args:
        clip_1CTHW: uint8 RGB, on the model's device.
        time_T: timestamps of the frames in seconds.
        number, count: of the window, and of all windows of the video.
    """

    def __init__(self, subject: Subject, clip_1CTHW: Tensor, time_T: Tensor, number: int, count: int):
        self.subject = subject
        self.clip_1CTHW = clip_1CTHW
        self.time_T = time_T
        self.number = number
        self.count = count

    @cached_property
    def passes(self) -> list[ForwardPass]:
        """The recorded forward passes of the encoder, one for each chunk."""
        return record(self.subject.encoder, lambda: self.subject.run(self.clip_1CTHW))

    @cached_property
    def patches_1NP(self) -> Tensor:
        """The patches of the whole clip."""
        return patchify(self.clip_1CTHW, self.subject.patch)

    @property
    def chunks(self) -> Sequence[Tensor]:
        """The parts of the clip that the encoder gets."""
        return self.clip_1CTHW.tensor_split(self.subject.chunks, dim=2)

    def column(self, title: str, patches_1NP: Tensor | None = None, **details: object) -> Column:
        """A column of these patches; of the clip's by default."""
        patches_1NP = self.patches_1NP if patches_1NP is None else patches_1NP
        clip_1CTHW = unpatchify(patches_1NP, self.subject.grid, self.subject.patch)
        return Column(title=title, clip_BCTHW=clip_1CTHW, **details)  # type: ignore[arg-type]


class View(ABC):
    """A kind of picture. Some windows are measured first, so that scales are the same in all windows.

    Attributes:
        name: of the files.
        title, text: heading and explanation on the page.
        point_s: a time whose window must be measured; None for none.
    """

    point_s: float | None = None
    name: ClassVar[str]
    title: ClassVar[str]
    text: ClassVar[str]

    def measure(self, window: Window) -> None:  # noqa: B027 - most views have nothing to measure
        """Take statistics of a window, before the first call of `columns`."""

    @abstractmethod
    def columns(self, window: Window) -> list[Column]:
        """The columns of a window; each has one clip."""


class HeatMaps(View):
    """A view of heat maps with a number for each token; the ends of each scale are quantiles.

    Attributes:
        unit: of the numbers.
        low: lowest end of the scales; None: measured.
    """

    unit: ClassVar[str] = ""
    low: ClassVar[float | None] = None

    def __init__(self) -> None:
        self._values: dict[str, list[Tensor]] = {}

    @abstractmethod
    def maps(self, window: Window) -> dict[str, Tensor]:
        """map_N of the whole grid, by title; NaN for a token that the model did not use."""

    def measure(self, window: Window) -> None:
        for title, map_N in self.maps(window).items():
            self._values.setdefault(title, []).append(map_N[~map_N.isnan()])

    def columns(self, window: Window) -> list[Column]:
        maps = self.maps(window).items()
        return [window.column("clip"), *(self._column(window, title, map_N) for title, map_N in maps)]

    def _column(self, window: Window, title: str, map_N: Tensor) -> Column:
        low, high = self.scale(title)
        fraction_N = (map_N - low) / max(high - low, 1e-6)
        return window.column(
            title,
            heat_map(window.patches_1NP, fraction_N[None]),
            legend=((self.unit, None),) if self.unit else (),
            scale=(f"{low:.2g}", f"{high:.2g}"),
        )

    def scale(self, title: str) -> tuple[float, float]:
        """The values of the lowest and the highest colour of a map."""
        measured = torch.cat(self._values[title])
        ends = torch.tensor([_LOWEST, _HIGHEST], device=measured.device)
        low, high = measured.quantile(ends).tolist()
        return (low if self.low is None else self.low), high


def place_of(window: Window, point: tuple[float, float], slice_number: int) -> tuple[int, int]:
    """Number of the pass and position in its sequence of the token nearest to a point in a slice.

    Args:
        point: fractions of the width and the height.
    """
    grid = window.subject.encoder.grid
    of_pass = window.passes[slice_number // grid.t]
    row, column = (
        min(int(fraction * side), side - 1) for fraction, side in ((point[1], grid.h), (point[0], grid.w))
    )
    index_N = of_pass.index_N
    at_NX = torch.stack([index_N // grid.per_slice, index_N // grid.w % grid.h, index_N % grid.w], dim=1)
    wanted_X = at_NX.new_tensor([slice_number % grid.t, row, column])
    distance_N = (at_NX - wanted_X).abs().sum(dim=1)
    distance_N = distance_N.masked_fill(~of_pass.is_token_N, int(distance_N.max()) + 1)
    return slice_number // grid.t, int(distance_N.argmin())


def with_box(column: Column, window: Window, number_of_pass: int, position: int) -> Column:
    """The column with a green frame around the patch of a token."""
    grid, patch = window.subject.encoder.grid, window.subject.patch
    index = int(window.passes[number_of_pass].index_N[position])
    first = (number_of_pass * grid.t + index // grid.per_slice) * patch[0]
    top, left = index // grid.w % grid.h * patch[1], index % grid.w * patch[2]
    clip_1CTHW = column.clip_BCTHW.clone()
    part = clip_1CTHW[:, :, first : first + patch[0], top : top + patch[1], left : left + patch[2]]
    colour_C11 = part.new_tensor(_FRAME)[:, None, None]
    part[..., [0, -1], :] = colour_C11[..., None]
    part[..., [0, -1]] = colour_C11[..., None]
    return Column(title=column.title, clip_BCTHW=clip_1CTHW, legend=column.legend, scale=column.scale)
