"""Resample a source video to a constant frame rate and one size, and cut it into segments."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain, groupby
from operator import itemgetter

from av.filter import Graph
from av.video.frame import VideoFrame

from kinemae.data_tools.encoding.convert import Converter
from kinemae.data_tools.encoding.deinterlace import deinterlaced
from kinemae.data_tools.encoding.frame_rate import (
    MAX_REPEATS,
    SLACK_S,
    FrameRateMode,
    is_stored,
    rational_rate,
)
from kinemae.data_tools.encoding.source_decoder import OpenedSource
from kinemae.data_tools.stream.container import BadVideo

_SLOWEST_FPS, _FASTEST_FPS = 0.001, 100_000  # outside this range, time stamps are wrong
_SHORTEST_SCENE_S = 1.0
_TARGET_FPS, _FEWEST_FRAMES = 15, 16  # of `_default_every`


@dataclass(frozen=True, kw_only=True)
class SegmentRules:
    """Positions of cuts: every `segment_s` seconds, at scene changes, both, or none."""

    segment_s: float | None = None
    scene_cuts: bool = False

    def __bool__(self) -> bool:
        return self.segment_s is not None or self.scene_cuts

    def lengths(self, rate: Fraction) -> tuple[float, float]:
        """The longest and the shortest segment, in frames."""
        if self.segment_s is None:
            return math.inf, _SHORTEST_SCENE_S * float(rate)
        longest = max(round(self.segment_s * float(rate)), 1)
        return longest, longest / 2

    def may_cut(self, frames: int, rate: Fraction) -> bool:
        """Check whether a video with so many frames can be cut."""
        longest, shortest = self.lengths(rate)
        return self.scene_cuts or frames - longest >= shortest


@dataclass(frozen=True, kw_only=True)
class ResampledVideo:
    """A video at a constant rate.

    Attributes:
        frames: consecutive frames, each on screen for 1 / rate seconds.
        expected: number of frames, if the container's values are correct.
        start_s: time of the first frame in the source.
        every: the frames are every n-th of a video at `every` times the rate.
    """

    frames: Iterator[VideoFrame]
    rate: Fraction
    expected: int
    start_s: float
    every: int = 1


@dataclass(frozen=True, kw_only=True)
class Segment:
    """Consecutive frames of one stored video; iterate over them before the next segment.

    Attributes:
        suffix: for the key of the video; empty if the video is not cut.
        start_s: start of the segment in the source.
    """

    suffix: str
    start_s: float
    frames: Iterator[VideoFrame]


def resample(
    source: OpenedSource,
    *,
    fps: float | None,
    short_side: int | None,
    jpeg: bool = False,
    every: int | None = 1,
) -> ResampledVideo:
    """Resample a source in time and space; deinterlace it.

    Frame k is the frame on screen at (k + 0.5) / rate seconds, so a constant rate keeps every frame once.
    With a variable rate that is kept, a frame may come up to one frame later, so that no frame is lost. Then
    every n-th frame is kept, the first one at position n // 2, so that its time is again the middle.

    Args:
        fps: frames per second; None keeps the source's rate, or the nominal rate of a variable one.
        every: keep every n-th of these frames; None selects n by `_default_every`.
        short_side: in pixels, rounded to even sizes; nothing is enlarged. None keeps the size.
        jpeg: convert to the colours of JPEG files, which have no colour tags.

    Raises:
        BadVideo: while iterating, if the source cannot be read or has no frame in the segment.
    """
    rate = source.rate if fps is None else rational_rate(fps)
    until_s = min(source.end_s, source.frames / float(source.mean_rate))
    expected = max(round((until_s - source.start_s) * float(rate)), 1)
    every = every or _default_every(rate, expected)
    if not _SLOWEST_FPS <= rate / every <= _FASTEST_FPS:
        raise BadVideo(f"it shows {float(rate / every):g} frames per second: set layout.args.fps")
    rate_mode = source.rate_mode if rate == source.rate else "constant"
    if source.rate_mode == "variable" != rate_mode:
        source.notes.append(f"variable frame rate, resampled to {float(rate):.4g} fps")
    frames = _every_nth(_retimed(source, rate, rate_mode), every)
    return ResampledVideo(
        frames=_converted(frames, Converter(source, short_side, jpeg)),
        rate=rate / every,
        expected=max((expected + (every - 1) // 2) // every, 1),
        start_s=source.start_s,
        every=every,
    )


def _default_every(rate: Fraction, frames: int) -> int:
    """1, 2 or 4: the number for which the rate is nearest to 15 frames per second, as a ratio.

    These numbers divide the usual strides of clips. A short video keeps at least 16 frames.
    """
    possible = [every for every in (1, 2, 4) if every == 1 or frames >= every * _FEWEST_FRAMES]
    return min(possible, key=lambda every: abs(math.log2(float(rate) / every / _TARGET_FPS)))


def _every_nth(frames: Iterator[VideoFrame], every: int) -> Iterator[VideoFrame]:
    """Every n-th frame from position n // 2 on; the last frame of a video that ends before."""
    for number, frame in enumerate(frames):
        if number % every == every // 2:
            yield frame
    if number < every // 2:
        yield frame


def cut_segments(video: ResampledVideo, segment_rules: SegmentRules) -> Iterator[Segment]:
    """Cut a video into segments; without rules it is one segment.

    A remainder shorter than half of `segment_s`, or than one second with scene cuts alone, is part of the
    segment before it. Segments have a suffix unless the video is too short for a cut.
    """
    is_cut = segment_rules.may_cut(video.expected, video.rate)
    for (number, begin), members in groupby(_numbered(video, segment_rules), itemgetter(0, 1)):
        yield Segment(
            suffix=f"-{number:04d}" if is_cut else "",
            start_s=video.start_s + float(begin / video.rate),
            frames=(frame for _, _, frame in members),
        )


def _numbered(video: ResampledVideo, segment_rules: SegmentRules) -> Iterator[tuple[int, int, VideoFrame]]:
    """Frames with the number and the first frame of their segment."""
    longest, shortest = segment_rules.lengths(video.rate)
    scenes = _SceneDetector() if segment_rules.scene_cuts else None
    segment, begin = 0, 0
    for number, frame in enumerate(video.frames):
        here = number - begin
        cut = here >= longest
        if scenes is not None:
            cut |= scenes.begins_with(frame, number) and here >= shortest
        if cut and video.expected - number >= shortest:
            segment, begin = segment + 1, number
        yield segment, begin, frame


def _retimed(source: OpenedSource, rate: Fraction, rate_mode: FrameRateMode) -> Iterator[VideoFrame]:
    """Yield the frame on screen in the middle of each 1 / rate seconds.

    Args:
        rate_mode: as in `is_stored`; for a variable rate_mode, the number of lost frames is noted.
    """
    shown, shown_s, taken, lost, made, already = None, 0.0, 0, 0, 0, 0
    for begin_s, frame in chain(deinterlaced(source.timed, source.notes), [(math.inf, None)]):
        until_s = min(begin_s - SLACK_S, source.end_s)
        if frame is None:  # the last frame lasts for the mean duration
            until_s = min(shown_s + 1 / float(source.mean_rate), source.end_s)
        while shown is not None and is_stored(
            made, rate, until_s, start_s=source.start_s, rate_mode=rate_mode, is_new=made == already
        ):
            yield shown
            made += 1
            if made > MAX_REPEATS * max(taken + 1, source.frames):
                raise BadVideo(f"its time stamps jump to second {begin_s:.0f} after {taken} frames")
        lost += made == already and shown is not None
        if begin_s >= source.end_s:
            break
        shown, shown_s, taken, already = frame, begin_s, taken + 1, made
    if made == 0:
        raise BadVideo(f"it has no frame from second {source.start_s:g} to {source.end_s:g}")
    if rate_mode == "variable":
        source.notes.append(
            f"variable frame rate, resampled to {float(rate):.4g} fps: {lost} of {taken} frames lost, "
            f"{made - taken + lost} repeated"
        )


def _converted(frames: Iterator[VideoFrame], converter: Converter) -> Iterator[VideoFrame]:
    taken: VideoFrame | None = None
    for frame in frames:
        if frame is not taken:
            taken, picture = frame, converter.convert(frame)
        yield picture


class _SceneDetector:
    """FFmpeg's scene change detector with its default threshold."""

    def __init__(self) -> None:
        self._graph: Graph | None = None

    def begins_with(self, frame: VideoFrame, number: int) -> bool:
        """Check whether a new scene begins with the next frame."""
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
