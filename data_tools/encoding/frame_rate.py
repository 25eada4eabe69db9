"""Frame rate of a source video: a constant rate, or the nominal rate of a variable one.

A rate is constant if each frame is on screen in the middle of exactly one slot of 1 / rate seconds. If the
packets do not show a constant rate, the file is decoded once: only decoded frames have reliable times.
"""

import math
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Literal

import av
import numpy as np

from kinemae.data_tools.storage.retries import raise_if_outage
from kinemae.data_tools.stream.container import BadVideo, open_container, open_video

SLACK_S = 1e-6  # half of a rate is often equal to a time stamp: as in the reader, the new frame counts
MAX_REPEATS = 1000  # of a frame, on average: time stamps with huge gaps must not fill the disk
_MIDDLE = 0.5  # of a slot
_LATEST = -0.5  # position in a slot at which a frame of a variable rate must still be on screen
_NTSC = tuple(Fraction(1000 * rate, 1001) for rate in (24, 30, 48, 60, 120))
_MAX_REORDERED = 16  # frames by which the order on screen may differ from that of the packets
_NARROW, _WIDE = 1.25, 1.6  # ratios by which jitter changes one interval
_MAX_UNEVEN = 1.01  # frames
_LOST_FRACTION = 0.01  # a slower rate is preferred if it loses no more of the frames than this

FrameRateMode = Literal["constant", "uneven", "variable"]


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Number and rate of the frames of a video.

    Attributes:
        frames: in the container, damaged ones included.
        mean: mean frames per second, exactly the container's rate if that is constant; None if there are too
            few frames.
        nominal: the mean if the rate is constant, else the rate that `nominal_rate` finds.
        rate_mode: constant; uneven, which is a constant rate with time stamps wrong by up to one frame; or
            variable.
    """

    frames: int
    mean: Fraction | None = None
    nominal: Fraction | None = None
    rate_mode: FrameRateMode = "constant"


def measure(source: bytes | Path) -> Timing:
    """Measure the frame rate of a video.

    Raises:
        BadVideo: the video cannot be opened. Damage within it ends the measurement without an error.
    """
    if isinstance(source, bytes):
        return _measure(source)
    try:
        status = source.stat()
    except OSError as error:
        raise_if_outage(error, f"cannot read {source}")
        raise BadVideo(f"cannot read it: {error.strerror}") from error
    return _measure_file(source, status.st_size, status.st_mtime_ns)


def rational_rate(fps: float | Fraction) -> Fraction:
    """Round a rate to a ratio of small integers, which containers can store."""
    return (
        Fraction(fps).limit_denominator(1001) if fps >= 1 else 1 / Fraction(1 / fps).limit_denominator(1001)
    )


def is_stored(
    slot: int, rate: Fraction, until_s: float, *, start_s: float, rate_mode: FrameRateMode, is_new: bool
) -> bool:
    """Check whether a frame that leaves the screen at `until_s` is stored in a slot of 1 / rate seconds.

    Args:
        start_s: when slot 0 begins.
        is_new: the frame has no slot yet. In a variable mode it may take one up to a frame later, so it is
            not lost; in an uneven mode only new frames are stored.
    """
    if rate_mode == "uneven":
        return is_new
    offset = _LATEST if is_new and rate_mode == "variable" else _MIDDLE
    return start_s + (slot + offset) / float(rate) < until_s


def nominal_rate(times_s: np.ndarray) -> Fraction | None:
    """The slowest rate of the frequent intervals that loses almost no frame.

    The median interval is tried first. A recording that is mostly paused also has shorter relevant intervals.

    Returns:
        None if every such rate repeats frames too often.
    """
    best: tuple[int, Fraction] | None = None
    most_lost = max(_LOST_FRACTION * len(times_s), 1)
    intervals = np.sort(np.diff(times_s))
    intervals = intervals[intervals > 0]
    while len(intervals):
        median = intervals[(len(intervals) - 1) // 2]
        rates = _candidates(_similar(intervals, median))
        if min(rates) * (times_s[-1] - times_s[0]) > MAX_REPEATS * len(times_s):
            break
        found = _least_lost(times_s, rates)
        best = min(found, best or found, key=lambda pair: pair[0])
        if found[0] <= most_lost:
            break
        intervals = intervals[intervals < median / 1.5]
    if best and best[0] > most_lost:  # jitter moves the intervals next to the median to one side
        mean = _least_lost(times_s, _candidates(np.diff(times_s)))
        best = min(best, mean, key=lambda pair: pair[0])
    return best and best[1]


def _least_lost(times_s: np.ndarray, rates: list[Fraction]) -> tuple[int, Fraction]:
    """The rate that loses the fewest frames, and how many."""
    return min(((_lost(times_s, rate), rate) for rate in rates), key=lambda pair: pair[0])


@lru_cache(maxsize=256)
def _measure_file(path: Path, size: int, time_ns: int) -> Timing:
    """Cached: segments of one long video need the same result many times."""
    return _measure(path)


def _measure(source: bytes | Path) -> Timing:
    with open_container(source) as (container, stream):
        ticks = np.array(sorted(_packet_ticks(container.demux(stream))), dtype=np.float64)
        claimed = [rate for rate in (stream.average_rate, stream.base_rate) if rate]
        tick_s, is_cut = float(stream.time_base or 1), stream.frames > len(ticks)
    timing = _timing((ticks - ticks[0]) * tick_s if len(ticks) else ticks, claimed, is_cut=is_cut)
    if timing.rate_mode == "constant":
        return timing
    # Packets may have equal, missing or wrapped stamps where frames have proper times.
    times_s = np.array(sorted(_decoded_times(source)))
    return _timing(times_s, claimed, is_cut=is_cut) if len(times_s) > 1 else timing


def _packet_ticks(packets: Iterator[av.Packet]) -> Iterator[int]:
    with suppress(av.FFmpegError):  # the decoder handles a damaged end
        for packet in packets:
            ticks = packet.dts if packet.pts is None else packet.pts
            if ticks is not None and not packet.is_discard:
                yield ticks


def _decoded_times(source: bytes | Path) -> Iterator[float]:
    with suppress(BadVideo), open_video(source) as opened:
        yield from map(opened.start_s, chain([opened.first], opened.rest))


def _timing(times_s: np.ndarray, claimed: list[Fraction], *, is_cut: bool) -> Timing:
    """Rate of frames at these times, in ascending order from 0."""
    count = len(times_s)
    if count < 2 or times_s[-1] <= 0:
        return Timing(frames=count)
    mean = _mean_rate(times_s, claimed)
    if np.array_equal(_slots(times_s, mean), np.arange(count)):
        return Timing(frames=count, mean=mean, nominal=mean)
    head = times_s[: -min(_MAX_REORDERED, count // 2)]
    if is_cut and len(head) > 1:  # B frames before the last frame in presentation order are cut off
        mean_of_head = _mean_rate(head, claimed)
        slots = _slots(times_s, mean_of_head)
        if np.array_equal(slots[: len(head)], np.arange(len(head))) and np.diff(slots).min() > 0:
            return Timing(frames=int(slots[-1]) + 1, mean=mean_of_head, nominal=mean_of_head)
    nominal = nominal_rate(times_s) or mean
    drift = abs(float(mean / nominal) - 1) * (count - 1)
    if drift < 1 / 4 and np.abs(times_s * float(mean) - np.arange(count)).max() < _MAX_UNEVEN:
        return Timing(frames=count, mean=mean, nominal=mean, rate_mode="uneven")
    return Timing(frames=count, mean=mean, nominal=nominal, rate_mode="variable")


def _slots(times_s: np.ndarray, rate: Fraction) -> np.ndarray:
    """The slot of 1 / rate seconds in the middle of which each frame is the newest on screen."""
    return np.maximum(np.ceil((times_s - SLACK_S) * float(rate) - _MIDDLE), 0)


def _mean_rate(times_s: np.ndarray, claimed: list[Fraction]) -> Fraction:
    """Mean frames per second; the container's value if it drifts by less than a quarter of a frame."""
    count = len(times_s)
    interval_s = float(times_s[-1]) / (count - 1)
    for rate in claimed:
        if abs(1 / float(rate) - interval_s) * (count - 1) < interval_s / 4:
            return Fraction(rate)
    return rational_rate(1 / interval_s)


def _similar(intervals: np.ndarray, median: float) -> np.ndarray:
    """The intervals that differ from the median by jitter alone."""
    narrow = intervals[(intervals > median / _NARROW) & (intervals < median * _NARROW)]
    wide = intervals[(intervals > median / _WIDE) & (intervals < median * _WIDE)]
    return narrow if len(narrow) > len(wide) * 2 / 3 else wide


def _candidates(intervals: np.ndarray) -> list[Fraction]:
    """The usual rates next to that of these intervals, the nearest first; else the measured one."""
    rate = 1 / float(intervals.mean())
    usual = [Fraction(round(rate)), *_NTSC]
    near = [other for other in usual if abs(float(other) / rate - 1) < 0.01]
    return sorted(near, key=lambda other: abs(float(other) - rate)) or [rational_rate(rate)]


def _lost(times_s: np.ndarray, rate: Fraction) -> int:
    """Count the frames to which `is_stored` gives no slot at a rate."""
    lost = made = 0
    for end in ((times_s[1:] - SLACK_S) * float(rate)).tolist():
        if made + _LATEST < end:
            made = max(made + 1, math.ceil(end - _MIDDLE))
        else:
            lost += 1
    return lost
