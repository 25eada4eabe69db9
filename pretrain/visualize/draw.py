"""Draw the views of a video: an mp4 of all windows, a GIF and a PNG of some of them."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from kinemae.data_tools.command import writing_to
from kinemae.data_tools.encoding.encode import open_timed_mp4
from kinemae.pretrain.clip_grid import FPS, Column, draw_frames, draw_grid
from kinemae.pretrain.runtime.metrics import gif_bytes
from kinemae.pretrain.visualize.videos import Video
from kinemae.pretrain.visualize.views import Subject, View, Window

_LINE_PX = 22
_BAR = (70, 110, 190)


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """The files of a view."""

    view: View
    mp4: Path
    gif: Path
    png: Path

    @property
    def files(self) -> tuple[Path, ...]:
        """All files."""
        return self.mp4, self.gif, self.png


def draw_views(
    video: Video, subject: Subject, views: Mapping[str, View], folder: Path, *, shown: list[int]
) -> list[Drawn]:
    """Draw all views of a video; the windows are read twice, first those that set the scales.

    Args:
        shown: numbers of the windows in the GIF and the PNG.

    Raises:
        BadVideo: the video cannot be read.
        DataError: a file cannot be written.
    """
    measured = {*shown, *(video.nearest(view.point_s) for view in views.values() if view.point_s is not None)}
    with torch.no_grad():
        for window in _windows(video, subject, measured):
            for view in views.values():
                view.measure(window)
        with writing_to(folder):
            folder.mkdir(parents=True, exist_ok=True)
            kept = _write_mp4s(video, subject, views, folder, shown)
    return [_write_stills(view, folder / name, kept[name]) for name, view in views.items()]


def _write_stills(view: View, path: Path, windows: list[list[Column]]) -> Drawn:
    """Write the GIF and the PNG: a row for each window, or rows of three frames of a single window."""
    mp4, gif, png = (path.with_name(f"{path.name}.{kind}") for kind in ("mp4", "gif", "png"))
    columns = _stacked(windows)
    chosen = still_frames(len(windows), columns[0].clip_BCTHW.shape[2])
    with writing_to(path.parent):
        still = Image.fromarray(draw_frames(columns, chosen))
        _write(png, lambda partial: still.save(partial, "PNG"))
        _write(gif, lambda partial: partial.write_bytes(gif_bytes(draw_grid(columns), fps=FPS)))
    return Drawn(view=view, mp4=mp4, gif=gif, png=png)


def still_frames(windows: int, frames: int) -> list[int]:
    """The frames of each window in the PNG."""
    return [frames // 2] if windows > 1 else sorted({0, frames // 2, frames - 1})


def _write_mp4s(
    video: Video, subject: Subject, views: Mapping[str, View], folder: Path, shown: list[int]
) -> dict[str, list[list[Column]]]:
    """Write an mp4 of each view; return the columns of the shown windows by view."""
    kept: dict[str, list[list[Column]]] = {name: [] for name in views}
    shown_until_s = -1.0
    with ExitStack() as stack:
        writers = {
            name: stack.enter_context(open_timed_mp4(folder / f"{name}.mp4", _rate(video))) for name in views
        }
        for window in _windows(video, subject, None):
            times_s = window.time_T.tolist()
            new = [frame for frame, time_s in enumerate(times_s) if time_s > shown_until_s]
            for name, view in views.items():
                columns = view.columns(window)
                if window.number in shown:
                    kept[name].append(columns)
                grid_THWC = draw_grid(columns)
                for frame in new:
                    framed_HWC = _with_time_line(grid_THWC[frame], times_s[frame], window, video)
                    writers[name](times_s[frame], framed_HWC)
            shown_until_s = max(times_s[-1], shown_until_s)
    return kept


def _windows(video: Video, subject: Subject, numbers: set[int] | None) -> Iterator[Window]:
    device = subject.encoder.patch_embed.weight.device
    time_VT = video.time_VT
    for number, clip_1CTHW in video.windows(numbers):
        yield Window(subject, clip_1CTHW.to(device), time_VT[number], number, len(time_VT))


def _rate(video: Video) -> Fraction:
    """Nominal frames per second."""
    time_T = video.time_VT[0]
    span_s = float(time_T[-1] - time_T[0])
    return Fraction((len(time_T) - 1) / span_s if span_s > 0 else FPS).limit_denominator(1001)


def _with_time_line(grid_HWC: np.ndarray, time_s: float, window: Window, video: Video) -> np.ndarray:
    """The grid above a time line of the video."""
    width = grid_HWC.shape[1]
    strip = Image.new("RGB", (width, _LINE_PX), "white")
    pen = ImageDraw.Draw(strip)
    pen.rectangle((0, 0, round(width * time_s / video.sample.duration_s), 4), fill=_BAR)
    text = f"{time_s:.2f} of {video.sample.duration_s:.2f} s, window {window.number + 1} of {window.count}"
    pen.text((2, 6), text, fill="black", font=ImageFont.load_default(size=12))
    return np.concatenate([grid_HWC, np.asarray(strip)])


def _stacked(windows: list[list[Column]]) -> list[Column]:
    """The columns of several windows, each window a row."""
    return [
        replace(parts[0], clip_BCTHW=torch.cat([part.clip_BCTHW for part in parts]))
        for parts in zip(*windows, strict=True)
    ]


def _write(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file atomically."""
    partial = path.with_name(f"{path.name}.partial")
    write(partial)
    partial.replace(path)
