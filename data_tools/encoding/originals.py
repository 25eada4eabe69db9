"""Videos as a source has them, read once from end to end: files, parts of files, tar members, pictures."""

import hashlib
import io
import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import chain
from pathlib import Path

import av
from av.video.frame import VideoFrame

from data_tools.files import read_blocks
from data_tools.listing.videos import SourceVideo
from data_tools.storage.location import StorageError
from data_tools.stream.container import (
    MAX_PIXELS,
    BadVideo,
    OpenedVideo,
    claimed_frame_s,
    frames_after_seek,
    open_container,
    open_video,
    worth_seeking,
)
from data_tools.stream.geometry import turns
from data_tools.stream.whole_frames import WholeFrames

# Single pictures only: "image2", for numbered files, would open others besides.
_PICTURES = "jpeg_pipe,png_pipe,bmp_pipe,webp_pipe,tiff_pipe,ppm_pipe,pgm_pipe,jpegls_pipe,j2k_pipe"
_PICTURES_FPS = 25.0  # where the source does not say


@dataclass(frozen=True, kw_only=True)
class Original:
    """An opened original.

    Attributes:
        timed: frames with the second at which each comes on screen, counted from the first frame shown;
            it begins with the frame on screen at the start of the part that is meant.
        first: a frame of it, for sizes and colours.
        turns: what brings its frames upright, as `stream.geometry.turns` says.
        rate: mean frames a second; exactly the video's own where that is constant.
        frames: how many frames the container holds, damaged ones included, in the whole video.
        start_s, end_s: the part that is meant; the end may lie beyond that of the video.
    """

    timed: Iterator[tuple[float, VideoFrame]]
    first: VideoFrame
    turns: tuple[bool, bool, bool]
    rate: Fraction
    frames: int
    start_s: float
    end_s: float


@contextmanager
def open_original(video: SourceVideo, *, notes: list[str]) -> Iterator[Original]:
    """Open a video of a source for one pass through its frames.

    Args:
        notes: gets a line about what is odd but no reason to reject the video, when all frames were taken.

    Raises:
        BadVideo: it cannot be read, now or while its frames are taken; a damaged frame counts as that.
    """
    if video.frames:
        yield _pictures(video)
        return
    source = video_source(video)
    count, span_s = _measure(source)
    start_s = video.start_s or 0.0
    with ExitStack() as stack:
        opened = stack.enter_context(open_video(source))
        frames: Iterator[VideoFrame] | None = chain([opened.first], opened.rest)
        if start_s > 0 and worth_seeking(opened, start_s):
            frames = frames_after_seek(opened, start_s)
            if frames is None:  # the container led past the place
                opened = stack.enter_context(open_video(source))
                frames = chain([opened.first], opened.rest)
        assert frames is not None
        whole = WholeFrames(frames, opened)
        yield Original(
            timed=_on_screen_from(start_s, ((opened.start_s(frame), frame) for frame in whole)),
            first=opened.first,
            turns=turns(opened.first),
            rate=_rate(opened, count, span_s),
            frames=max(count, 1),
            start_s=start_s,
            end_s=math.inf if video.end_s is None else video.end_s,
        )
        if video.start_s is None and video.end_s is None:
            notes.extend(whole.missing())
        elif whole.note:
            notes.append(whole.note)


def video_source(video: SourceVideo) -> bytes | Path:
    """What `stream.decode` reads: the file, or the bytes of a remote file or of a member of a tar.

    Raises:
        BadVideo: there is no such file, or the tar ends before the member does.
        StorageError: a remote file cannot be read now, after all retries.
    """
    if video.member is None and not video.url:
        return video.path
    offset, length = video.member or (0, None)
    try:
        content = video.place.read(offset, length)
    except StorageError as error:
        if video.url and not error.is_missing:
            raise
        raise BadVideo(str(error)) from error
    if length is not None and len(content) < length:
        raise BadVideo(f"{video.path.name} ends before this member of it does")
    return content


def fetch(video: SourceVideo, file: Path) -> None:
    """Bring a remote video to this machine.

    Raises:
        BadVideo: there is no such file, or the tar ends before the member does.
        StorageError: it cannot be read now, after all retries.
    """
    source = video_source(video) if video.member is not None else None
    if isinstance(source, bytes):
        file.write_bytes(source)
        return
    try:
        video.place.download(file)
    except StorageError as error:
        if not error.is_missing:
            raise
        raise BadVideo(str(error)) from error


def content_digest(video: SourceVideo) -> str:
    """Names the bytes of the original: equal for equal ones, whatever they are called and wherever they lie.

    Raises:
        BadVideo: they cannot be read.
    """
    digest = hashlib.sha256()
    try:
        for block in _blocks(video):
            digest.update(block)
    except OSError as error:
        raise BadVideo(f"cannot read it: {error.strerror or error}") from error
    return digest.hexdigest()[:32]


def _blocks(video: SourceVideo) -> Iterator[bytes]:
    offset, length = video.member or (0, None)
    for path in [video.path / name for name in video.frames] or [video.path]:
        yield from read_blocks(path, offset, length)


def _measure(source: bytes | Path) -> tuple[int, float]:
    """How many packets are shown, and seconds from the first to the last of them; nothing is decoded."""
    if isinstance(source, bytes):
        return _count_packets(source)
    try:
        status = source.stat()
    except OSError as error:
        raise BadVideo(f"cannot read it: {error.strerror}") from error
    return _measure_file(source, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=256)
def _measure_file(path: Path, size: int, time_ns: int) -> tuple[int, float]:
    """Parts of one long video ask for the same again and again."""
    return _count_packets(path)


def _count_packets(source: bytes | Path) -> tuple[int, float]:
    count, first, last = 0, math.inf, -math.inf
    with open_container(source) as (container, stream):
        with suppress(av.FFmpegError):  # a damaged end is the decoder's to judge
            for packet in container.demux(stream):
                ticks = packet.dts if packet.pts is None else packet.pts
                if ticks is not None and not packet.is_discard:
                    count, first, last = count + 1, min(first, ticks), max(last, ticks)
        tick_s = float(stream.time_base or 1)
    return count, (last - first) * tick_s if count > 1 else 0.0


def _rate(opened: OpenedVideo, count: int, span_s: float) -> Fraction:
    """Mean frames a second; what the container says where that would not drift by a quarter of a frame."""
    interval_s = span_s / (count - 1) if count > 1 and span_s > 0 else claimed_frame_s(opened)
    for claimed in (opened.stream.average_rate, opened.stream.base_rate):
        if claimed and abs(1 / float(claimed) - interval_s) * max(count - 1, 1) < interval_s / 4:
            return Fraction(claimed)
    return tidy_rate(1 / interval_s)


def tidy_rate(fps: float | Fraction) -> Fraction:
    """A rate as the ratio of small numbers, which containers can hold."""
    return (
        Fraction(fps).limit_denominator(1001) if fps >= 1 else 1 / Fraction(1 / fps).limit_denominator(1001)
    )


def _on_screen_from(
    start_s: float, timed: Iterator[tuple[float, VideoFrame]]
) -> Iterator[tuple[float, VideoFrame]]:
    """Leave out the frames that are gone from the screen at the start."""
    shown = None
    for entry in timed:
        if shown is not None and entry[0] > start_s:
            yield shown
        shown = entry
    if shown is not None:
        yield shown


def _pictures(video: SourceVideo) -> Original:
    rate = tidy_rate(video.fps or _PICTURES_FPS)
    first = read_picture(video.path / video.frames[0])
    start_s = video.start_s or 0.0
    return Original(
        timed=_on_screen_from(start_s, _timed_pictures(video, first, rate)),
        first=first,
        turns=turns(first),
        rate=rate,
        frames=len(video.frames),
        start_s=start_s,
        end_s=math.inf if video.end_s is None else video.end_s,
    )


def _timed_pictures(
    video: SourceVideo, first: VideoFrame, rate: Fraction
) -> Iterator[tuple[float, VideoFrame]]:
    for number, name in enumerate(video.frames):
        frame = read_picture(video.path / name)
        if (frame.width, frame.height) != (first.width, first.height):
            raise BadVideo(
                f"picture {name} has {frame.width}x{frame.height} pixels, "
                f"{video.frames[0]} has {first.width}x{first.height}"
            )
        yield float(number / rate), frame


def read_picture(path: Path) -> VideoFrame:
    """A picture's file as a frame.

    Raises:
        BadVideo: it cannot be read, or is larger than `MAX_PIXELS`.
    """
    try:
        content = io.BytesIO(path.read_bytes())  # a name would choose the demuxer for numbered files
        with av.open(content, "r", options={"format_whitelist": _PICTURES}) as container:
            codec = container.streams.video[0].codec_context
            codec.options = {"max_pixels": str(MAX_PIXELS)}
            codec.thread_count = 1
            return next(container.decode(video=0))
    except (av.FFmpegError, OSError, IndexError, StopIteration) as error:
        reason = getattr(error, "strerror", None) or "it holds no picture"
        raise BadVideo(f"picture {path.name} cannot be read: {reason}") from error
