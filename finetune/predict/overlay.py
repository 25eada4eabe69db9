"""Videos with their predictions: an mp4 that shows the scores and a time line below each frame."""

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from kinemae.data_tools.encoding.encode import write_timed_video
from kinemae.data_tools.stream.decode import rgb_frames
from kinemae.finetune.predict.scores import VideoPrediction

_LONGEST = 960  # pixels of a side
_MIN_WIDTH = 480
_SHOWN = 3  # scores
_LINE, _CURVES, _BAR, _MARGIN = 20, 56, 8, 4  # heights in pixels
_BARS = 0.25  # longest bar of a score, as a fraction of the width
_COLOURS = ((255, 176, 0), (100, 143, 255), (220, 38, 127), (120, 200, 120), (190, 140, 255), (254, 97, 0))
_BACKGROUND, _GREY, _WHITE = (24, 24, 24), (90, 90, 90), (255, 255, 255)


def write_overlay(path: Path, source: bytes | Path, prediction: VideoPrediction) -> None:
    """Write a video with its scores: the highest at each time as text, and all of it as a time line.

    The time line shows the scores with the highest peaks, and detected segments as bars. Sound is left out.

    Raises:
        BadVideo: the video cannot be read.
        DataError: the file cannot be written.
    """
    info = prediction.info
    rate = Fraction(info["frames"] / info["duration_s"]).limit_denominator(1001)
    write_timed_video(path, overlaid(source, prediction), rate)


def overlaid(source: bytes | Path, prediction: VideoPrediction) -> Iterator[tuple[float, np.ndarray]]:
    """Yield the frames of a video with their times and a band below that shows the prediction."""
    band: _Band | None = None
    for time_s, frame_HWC in rgb_frames(source, longest=_LONGEST):
        if band is None:
            band = _Band(prediction, max(frame_HWC.shape[1], _MIN_WIDTH))
        left = (band.width - frame_HWC.shape[1]) // 2
        height = frame_HWC.shape[0]
        canvas_HWC = np.zeros((height + band.height, band.width, 3), np.uint8)
        canvas_HWC[:height, left : left + frame_HWC.shape[1]] = frame_HWC
        canvas_HWC[height:] = band.at(time_s)
        yield time_s, canvas_HWC


class _Band:
    """The band below the frames: lines of text, curves over time, bars of segments, and a cursor."""

    def __init__(self, prediction: VideoPrediction, width: int):
        self.width = width
        self._prediction = prediction
        self._duration_s = max(prediction.info["duration_s"], 1e-9)
        peaks_X = prediction.score_RX.max(axis=0)
        self._shown = np.argsort(-peaks_X, kind="stable")[: len(_COLOURS)].tolist()
        self._lines = min(_SHOWN, len(prediction.columns))
        self._middle_R = (prediction.start_R + prediction.end_R) / 2
        self._font = ImageFont.load_default(size=14)
        self._text: tuple[int, np.ndarray] | None = None
        self._timeline_HWC = self._timeline()
        self.height = self._lines * _LINE + len(self._timeline_HWC)

    def at(self, time_s: float) -> np.ndarray:
        """Return the band at a time, as band_HWC."""
        row = int(np.abs(self._middle_R - time_s).argmin())
        if self._text is None or self._text[0] != row:
            self._text = row, self._text_of(row)
        band_HWC = np.concatenate([self._text[1], self._timeline_HWC])
        cursor = min(int(time_s / self._duration_s * self.width), self.width - 2)
        band_HWC[self._lines * _LINE :, cursor : cursor + 2] = _WHITE
        return band_HWC

    def _colour(self, column: int) -> tuple[int, int, int]:
        return _COLOURS[self._shown.index(column)] if column in self._shown else _WHITE

    def _text_of(self, row: int) -> np.ndarray:
        """The highest scores at a row, with a bar each."""
        image, draw = _picture(self.width, self._lines * _LINE)
        score_X = self._prediction.score_RX[row]
        for line, column in enumerate(np.argsort(-score_X, kind="stable")[: self._lines].tolist()):
            top, colour = line * _LINE, self._colour(column)
            name = f"{score_X[column]:6.2f}  {self._prediction.columns[column]}"
            draw.text((_MARGIN, top + 1), name, fill=colour, font=self._font)
            if self._is_probability:
                end = self.width // 2 + round(self.width * _BARS * float(score_X[column]))
                draw.rectangle((self.width // 2, top + 5, end, top + _LINE - 5), fill=colour)
        start_s, end_s = self._prediction.start_R[row], self._prediction.end_R[row]
        place = (self.width - _MARGIN, 1)
        draw.text(place, f"{start_s:.1f} - {end_s:.1f} s", fill=_WHITE, font=self._font, anchor="ra")
        return np.asarray(image)

    def _timeline(self) -> np.ndarray:
        """Curves of the scores over the whole video, and bars of its segments."""
        segments = self._prediction.segments or []
        rows = len(self._shown) if self._prediction.segments is not None else 0
        height = _CURVES + 2 * _MARGIN + rows * _BAR
        image, draw = _picture(self.width, height + height % 2)
        draw.rectangle((0, _MARGIN, self.width - 1, _MARGIN + _CURVES), outline=_GREY)
        for column in reversed(self._shown):
            points = list(zip(self._x(self._middle_R), self._y(column), strict=True))
            ends = (0, points[0][1]), (self.width - 1, points[-1][1])
            draw.line([ends[0], *points, ends[1]], fill=self._colour(column), width=2)
        for each in segments:
            column = self._prediction.columns.index(each.label)
            if column in self._shown:
                top = _CURVES + 2 * _MARGIN + self._shown.index(column) * _BAR
                left, right = self._x(np.array([each.start_s, each.end_s]))
                draw.rectangle((left, top, max(right, left + 1), top + _BAR - 2), fill=self._colour(column))
        return np.asarray(image)

    @property
    def _is_probability(self) -> bool:
        score_RX = self._prediction.score_RX
        return bool((score_RX >= 0).all() and (score_RX <= 1).all())

    def _x(self, time_R: np.ndarray) -> list[float]:
        return (time_R / self._duration_s * (self.width - 1)).clip(0, self.width - 1).tolist()

    def _y(self, column: int) -> list[float]:
        score_R = self._prediction.score_RX[:, column]
        low, high = (0.0, 1.0) if self._is_probability else (score_R.min(), score_R.max())
        fraction_R = (score_R - low) / (high - low) if high > low else np.full(len(score_R), 0.5)
        return (_MARGIN + 1 + (1 - fraction_R) * (_CURVES - 2)).tolist()


def _picture(width: int, height: int) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    image = Image.new("RGB", (width, height), _BACKGROUND)
    return image, ImageDraw.Draw(image)
