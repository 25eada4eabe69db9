"""Deinterlacing of frames with the interlaced flag by FFmpeg's bwdif, one frame for each."""

from collections import deque
from collections.abc import Iterator
from fractions import Fraction

import av
from av.filter import Graph
from av.video.frame import VideoFrame

_Timed = Iterator[tuple[float, VideoFrame]]
_NOTE = "interlaced frames were deinterlaced"


def deinterlaced(timed: _Timed, notes: list[str]) -> _Timed:
    """Deinterlace frames; their times do not change.

    Progressive frames pass unchanged.

    Args:
        notes: gets a line if a frame is interlaced.
    """
    graph: _Bwdif | None = None
    for at_s, frame in timed:
        if graph is not None and not graph.takes(frame):
            yield from graph.end()
            graph = None
        if graph is None and frame.interlaced_frame:
            graph = _Bwdif(frame)
            if _NOTE not in notes:
                notes.append(_NOTE)
        if graph is None:
            yield at_s, frame
        else:
            yield from graph.put(at_s, frame)
    if graph is not None:
        yield from graph.end()


class _Bwdif:
    """FFmpeg's bwdif filter for frames of one size and format; its output is one frame late."""

    def __init__(self, first: VideoFrame):
        self._kind = _kind(first)
        self._waiting: deque[tuple[float, VideoFrame]] = deque()
        self._is_alone = True
        self._graph = Graph()
        self._graph.threads = 1
        source = self._graph.add_buffer(
            width=first.width, height=first.height, format=first.format, time_base=Fraction(1, 1000)
        )
        bwdif = self._graph.add("bwdif", "mode=send_frame:parity=auto:deint=interlaced")
        self._graph.link_nodes(source, bwdif, self._graph.add("buffersink"))
        self._graph.configure()

    def takes(self, frame: VideoFrame) -> bool:
        """Check whether a frame has the size and format of the earlier ones."""
        return _kind(frame) == self._kind

    def put(self, at_s: float, frame: VideoFrame) -> _Timed:
        """Add a frame; yield the one before."""
        self._is_alone = not self._waiting
        self._waiting.append((at_s, frame))
        self._graph.vpush(frame)
        yield from self._finished()

    def end(self) -> _Timed:
        """Yield the last frame."""
        if self._is_alone:  # the filter does not change a single frame
            self._graph.vpush(self._waiting[0][1])
        self._graph.vpush(None)
        yield from self._finished()

    def _finished(self) -> _Timed:
        while self._waiting:
            try:
                made = self._graph.vpull()
            except (av.BlockingIOError, av.EOFError):
                return
            at_s, frame = self._waiting.popleft()
            made.color_range, made.colorspace = frame.color_range, frame.colorspace
            made.color_primaries, made.color_trc = frame.color_primaries, frame.color_trc
            yield at_s, made


def _kind(frame: VideoFrame) -> tuple[int, int, str]:
    return frame.width, frame.height, frame.format.name
