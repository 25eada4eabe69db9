"""Frames of an original at an even rate, upright, as 4:2:0 planes of the size asked for; cut into pieces."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain, groupby
from operator import itemgetter

import numpy as np
from av.filter import Graph
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter

from data_tools.encoding.originals import Original, tidy_rate
from data_tools.stream.container import BadVideo

_SCALING = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.BITEXACT
_BT601 = 6  # AVCOL_SPC_SMPTE170M
_SLACK_S = 1e-6  # half of a rate often falls on a time stamp exactly: as in the reader, the new frame counts
_SLOWEST_FPS, _FASTEST_FPS = 0.001, 100_000  # beyond, time stamps are no such thing
_MOST_REPEATS = 1000  # of a frame, on average: time stamps that leap for years must not fill the disk
_SHORTEST_SCENE_S = 1.0


@dataclass(frozen=True, kw_only=True)
class Cuts:
    """Where videos are cut: every so many seconds, where a scene begins, or nowhere."""

    segment_s: float | None = None
    scene_cuts: bool = False

    def __bool__(self) -> bool:
        return self.segment_s is not None or self.scene_cuts


@dataclass(frozen=True, kw_only=True)
class Steady:
    """A video as it will be stored.

    Attributes:
        frames: one after the other, each on screen for 1 / rate seconds.
        expected: how many there will be, if the container tells the truth.
        start_s: where in the original the first of them comes on screen.
    """

    frames: Iterator[VideoFrame]
    rate: Fraction
    expected: int
    start_s: float


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A run of frames that becomes one stored video; take its frames before asking for the next piece."""

    number: int
    start_s: float
    frames: Iterator[VideoFrame]


def steady(
    original: Original, *, fps: float | Fraction | None, short_side: int | None, jpeg: bool = False
) -> Steady:
    """Resample an original in time and space.

    Frame k is what is on screen at (k + 0.5) / rate seconds, so a constant rate keeps every frame once.

    Args:
        fps: frames a second; None keeps the original's, or the mean of a varying one.
        short_side: in pixels, rounded to even sizes; nothing is enlarged. None keeps the size.
        jpeg: convert to the colours of JPEG files, which have no tags to tell others by.

    Raises:
        BadVideo: while frames are taken, where the original cannot be read or holds none of the part.
    """
    rate = original.rate if fps is None else tidy_rate(fps)
    if not _SLOWEST_FPS <= rate <= _FASTEST_FPS:
        raise BadVideo(f"it shows {float(rate):g} frames a second: set layout.args.fps")
    until_s = min(original.end_s, original.frames / float(original.rate))
    converter = _Converter(original, short_side, jpeg)
    return Steady(
        frames=_converted(_retimed(original, rate), converter),
        rate=rate,
        expected=max(round((until_s - original.start_s) * float(rate)), 1),
        start_s=original.start_s,
    )


def pieces(video: Steady, cuts: Cuts) -> Iterator[Piece]:
    """Cut a video as the config says.

    No piece is shorter than half a segment, or than a second where scenes alone decide: what is left over
    stays with the piece before. A video that is not cut is one piece.
    """
    numbered = _numbered(video, cuts)
    for (number, begin), members in groupby(numbered, key=itemgetter(0, 1)):
        start_s = video.start_s + float(begin / video.rate)
        yield Piece(number=number, start_s=start_s, frames=(frame for _, _, frame in members))


def _numbered(video: Steady, cuts: Cuts) -> Iterator[tuple[int, int, VideoFrame]]:
    """Frames with the number and the first frame of their piece."""
    longest, shortest = math.inf, _SHORTEST_SCENE_S * float(video.rate)
    if cuts.segment_s is not None:
        longest = max(round(cuts.segment_s * float(video.rate)), 1)
        shortest = longest / 2
    scenes = _SceneDetector() if cuts.scene_cuts else None
    piece, begin = 0, 0
    for number, frame in enumerate(video.frames):
        here = number - begin
        cut = here >= longest
        if scenes is not None:
            cut |= scenes.begins_with(frame, number) and here >= shortest
        if cut and video.expected - number >= shortest:
            piece, begin = piece + 1, number
        yield piece, begin, frame


def _retimed(original: Original, rate: Fraction) -> Iterator[VideoFrame]:
    """The frame on screen in the middle of each 1 / rate seconds."""
    shown, taken, made, shown_s = None, 0, 0, 0.0
    for begin_s, frame in chain(original.timed, [(math.inf, None)]):
        until_s = min(begin_s - _SLACK_S, original.end_s)
        if frame is None:  # the last one stays for the mean time of a frame
            until_s = min(shown_s + 1 / float(original.rate), original.end_s)
        while shown is not None and original.start_s + (made + 0.5) / float(rate) < until_s:
            yield shown
            made += 1
            if made > _MOST_REPEATS * (taken + 1):
                raise BadVideo(f"its time stamps leap to second {begin_s:.0f} after {taken} frames")
        if begin_s >= original.end_s:
            break
        shown, taken, shown_s = frame, taken + 1, begin_s
    if made == 0:
        raise BadVideo(f"it shows nothing from second {original.start_s:g} to {original.end_s:g}")


def _converted(frames: Iterator[VideoFrame], converter: "_Converter") -> Iterator[VideoFrame]:
    taken: VideoFrame | None = None
    for frame in frames:
        if frame is not taken:
            taken, picture = frame, converter.picture(frame)
        yield picture


class _Converter:
    """Frames of any format to upright 4:2:0 of one size, in their own colour space where tags can say so."""

    def __init__(self, original: Original, short_side: int | None, jpeg: bool):
        self._turns, self._jpeg = original.turns, jpeg
        self._size = _even_size(original.first.width, original.first.height, short_side)
        self._reformatter = VideoReformatter()

    def picture(self, frame: VideoFrame) -> VideoFrame:
        """The frame as it will be encoded."""
        is_rgb = frame.format.is_rgb
        is_full = is_rgb or frame.color_range == ColorRange.JPEG or frame.format.name.startswith("yuvj")
        stored_full = self._jpeg or (is_full and not is_rgb)
        picture = self._reformatter.reformat(
            frame,
            width=self._size[0],
            height=self._size[1],
            format="yuvj420p" if self._jpeg else "yuv420p",
            dst_colorspace=Colorspace.ITU601 if self._jpeg or is_rgb else None,
            interpolation=_SCALING,
            src_color_range=ColorRange.JPEG if is_full else ColorRange.MPEG,
            dst_color_range=ColorRange.JPEG if stored_full else ColorRange.MPEG,
            threads=1,
        )
        if picture is frame or any(self._turns):  # a frame of the decoder's must not be changed
            picture = _turned(picture, self._turns)
        picture.color_range = ColorRange.JPEG if stored_full else ColorRange.MPEG
        picture.colorspace = _BT601 if self._jpeg or is_rgb else frame.colorspace
        picture.color_primaries, picture.color_trc = frame.color_primaries, frame.color_trc
        return picture


def _even_size(width: int, height: int, short_side: int | None) -> tuple[int, int]:
    """Both sides even, as 4:2:0 needs it, and the shorter one not above `short_side`."""
    scale = min(1.0, short_side / min(width, height)) if short_side else 1.0
    if scale == 1.0:
        return max(width // 2 * 2, 2), max(height // 2 * 2, 2)
    return max(round(width * scale / 2) * 2, 2), max(round(height * scale / 2) * 2, 2)


def _turned(picture: VideoFrame, turns: tuple[bool, bool, bool]) -> VideoFrame:
    exchange, flip_rows, flip_columns = turns
    planes = []
    for plane in picture.planes:
        rows = np.frombuffer(memoryview(plane), np.uint8).reshape(plane.height, plane.line_size)
        pixels = rows[:, : plane.width]
        pixels = pixels.T if exchange else pixels
        pixels = pixels[::-1] if flip_rows else pixels
        planes.append(pixels[:, ::-1] if flip_columns else pixels)
    height, width = planes[0].shape
    stacked = np.concatenate([pixels.reshape(-1) for pixels in planes]).reshape(height * 3 // 2, width)
    return VideoFrame.from_ndarray(stacked, format=picture.format.name)


class _SceneDetector:
    """FFmpeg's scene change detector, with its own threshold."""

    def __init__(self) -> None:
        self._graph: Graph | None = None

    def begins_with(self, frame: VideoFrame, number: int) -> bool:
        """Whether a new scene begins with this frame, the next in order."""
        if self._graph is None:
            self._graph = Graph()
            source = self._graph.add_buffer(
                width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1, 1000)
            )
            self._graph.link_nodes(source, self._graph.add("scdet"), self._graph.add("buffersink"))
            self._graph.configure()
        frame.pts, frame.time_base = number, Fraction(1, 1000)
        self._graph.vpush(frame)
        return "lavfi.scd.time" in self._graph.vpull().metadata
