"""Presentation times of decoded frames: FFmpeg's best-effort rule, made strictly increasing.

A container may give a frame no presentation time stamp, an equal one, a lower one, or one in decoding order
(AVI). FFmpeg then takes the decoding time stamp: it counts the presentation stamps and the decoding stamps
that do not increase and uses the kind with fewer faults (`AVFrame.best_effort_timestamp`, which PyAV does
not expose). This module uses the same counts. Four rules are added, so that each frame gets a unique time:

- A frame waits while an undecoded packet has an earlier stamp. So a file with stamps in decoding order is
  detected before its first wrong frame is returned.
- Decoding stamps are shifted by the first frame's difference from its presentation stamp.
- Frames with equal or missing stamps are spread evenly up to the next frame with a later stamp.
- Where stamps decrease permanently (joined files, a wrapped counter), the time advances by one frame.

Frames with correct stamps pass through unchanged and at once.
"""

from collections import deque
from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar

_MAX_HELD = 8  # frames in memory while their times are unknown, on top of those that a decoder reorders


class StampedPacket(Protocol):
    """A packet with its presentation time stamp."""

    @property
    def pts(self) -> int | None: ...


class StampedFrame(Protocol):
    """A decoded frame with both time stamps, in ticks."""

    pts: int | None
    dts: int | None


Frame = TypeVar("Frame", bound=StampedFrame)


class FrameClock(Generic[Frame]):
    """Assign strictly increasing times to frames in output order, written to `frame.pts`.

    Args:
        step: the nominal duration of a frame in ticks, for frames without usable stamps.

    Attributes:
        is_repaired: whether a frame's time differs from its own presentation stamp.
    """

    def __init__(self, step: int):
        self.is_repaired = False
        self._step = max(step, 1)
        self._held: list[Frame] = []
        self._waiting: deque[tuple[int, int]] = deque()  # number and stamp of packets without a frame yet
        self._sent = 0
        self._last: int | None = None  # time of the latest frame returned
        self._ahead: int | None = None  # presentation stamp minus decoding stamp of the first frame
        self._shift = 0
        self._last_pts: int | None = None
        self._last_dts: int | None = None
        self._faulty_pts = self._faulty_dts = 0

    def send(self, packet: StampedPacket, reorder_depth: int) -> None:
        """Announce a packet for the decoder, which holds back `reorder_depth` frames at most."""
        self._sent += 1
        if reorder_depth and packet.pts is not None:
            self._waiting.append((self._sent, packet.pts))
        while self._waiting and self._waiting[0][0] < self._sent - reorder_depth - 1:
            self._waiting.popleft()  # a packet without a frame

    def receive(self, frame: Frame) -> Iterator[Frame]:
        """Add the decoder's next frame; return the frames with known times, in order."""
        self._count_faults(frame.pts, frame.dts)
        if self._waiting:
            self._waiting = deque(entry for entry in self._waiting if entry[1] != frame.pts)
        self._held.append(frame)
        return self._release(is_over=False)

    def flush(self) -> Iterator[Frame]:
        """Return the remaining frames at the end of decoding."""
        self._waiting.clear()
        return self._release(is_over=True)

    def _count_faults(self, pts: int | None, dts: int | None) -> None:
        """Count the stamps that do not increase; a missing stamp is replaced by the other kind."""
        if dts is not None and self._last_dts is not None:
            self._faulty_dts += dts <= self._last_dts
        if pts is not None and self._last_pts is not None:
            self._faulty_pts += pts <= self._last_pts
        if pts is not None or dts is not None:
            self._last_dts = pts if dts is None else dts
            self._last_pts = dts if pts is None else pts
        if self._ahead is None and pts is not None and dts is not None:
            self._ahead = pts - dts

    def _stamp(self, frame: Frame) -> int | None:
        """The frame's time by the kind of stamp with fewer faults."""
        if self._uses_pts and frame.pts is not None:
            return frame.pts + self._shift
        return None if frame.dts is None else frame.dts + (self._ahead or 0) + self._shift

    @property
    def _uses_pts(self) -> bool:
        return self._faulty_pts <= self._faulty_dts

    def _release(self, *, is_over: bool) -> Iterator[Frame]:
        while self._held:
            place, time = self._next_placed()
            if time is None:
                if not is_over and len(self._held) <= _MAX_HELD + len(self._waiting):
                    return
                place, time = 0, self._restart()
            yield from self._return(place, time)

    def _next_placed(self) -> tuple[int, int | None]:
        """The first held frame whose time is certain and later than the latest, and that time."""
        for place, frame in enumerate(self._held):
            time = self._stamp(frame)
            if time is None or (self._last is not None and time <= self._last):
                continue
            if self._uses_pts and self._is_early(frame):
                continue
            return place, time
        return 0, None

    def _is_early(self, frame: Frame) -> bool:
        """Check whether a packet in the decoder has an earlier stamp: one of the two must be wrong."""
        pts = frame.pts
        return pts is not None and any(stamp < pts for _, stamp in self._waiting)

    def _restart(self) -> int:
        """Advance by one frame where stamps decrease or are missing."""
        time = self._step + self._last if self._last is not None else 0
        stamp = self._stamp(self._held[0])
        if self._last is None and stamp is not None:
            return stamp
        if stamp is not None:
            self._shift += time - stamp
        return time

    def _return(self, place: int, time: int) -> Iterator[Frame]:
        """Return the frames up to the placed one; the frames before it are spread evenly."""
        last = self._last if self._last is not None else time - (place + 1) * self._step
        time = max(time, last + place + 1)
        for number in range(place + 1):
            frame = self._held.pop(0)
            ticks = last + (time - last) * (number + 1) // (place + 1)
            self.is_repaired |= frame.pts != ticks
            frame.pts = self._last = ticks
            yield frame
