"""Read source videos sequentially: files, segments, tar members and image folders."""

import hashlib
import io
import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path

import av
from av.video.frame import VideoFrame

from kinemae.data_tools.encoding.frame_rate import FrameRateMode, measure, rational_rate
from kinemae.data_tools.files import read_blocks, require_regular_file
from kinemae.data_tools.manifest.videos import SourceVideo
from kinemae.data_tools.storage.location import StorageError, StorageUnavailable
from kinemae.data_tools.storage.retries import raise_if_outage
from kinemae.data_tools.stream.container import (
    MAX_PIXELS,
    BadVideo,
    OpenedVideo,
    frames_after_seek,
    nominal_frame_s,
    open_video,
    should_seek,
)
from kinemae.data_tools.stream.decode import IntactFrames
from kinemae.data_tools.stream.geometry import Rotation, pixel_aspect, rotation

_IMAGES_FPS = 25.0  # default
# Single images only: "image2" reads numbered files and would open other files.
_IMAGE_DEMUXERS = "jpeg_pipe,png_pipe,bmp_pipe,webp_pipe,tiff_pipe,ppm_pipe,pgm_pipe,jpegls_pipe,j2k_pipe"


@dataclass(frozen=True, kw_only=True)
class OpenedSource:
    """An opened source video.

    Attributes:
        timed: frames with the time at which each comes on screen, from the first frame of the video; starts
            with the frame on screen at `start_s`.
        first: the first frame, for sizes and colours.
        rotation: rotation that makes its frames upright.
        rate: frames per second: the exact constant rate, else the nominal rate.
        mean_rate: mean frames per second, equal to a constant `rate`.
        rate_mode: whether the rate is constant, see `frame_rate.Timing`.
        frames: number of frames in the whole container, including damaged ones.
        start_s, end_s: the segment; the end may lie beyond the end of the video.
        pixel_aspect: width / height of its pixels.
        notes: lines about defects that do not reject the video.
        is_image_sequence: whether it is a folder of images, each with its own rotation.
    """

    timed: Iterator[tuple[float, VideoFrame]]
    first: VideoFrame
    rotation: Rotation
    rate: Fraction
    mean_rate: Fraction
    frames: int
    start_s: float
    end_s: float
    pixel_aspect: Fraction
    notes: list[str]
    rate_mode: FrameRateMode = "constant"
    is_image_sequence: bool = False


@contextmanager
def open_source(video: SourceVideo, *, notes: list[str]) -> Iterator[OpenedSource]:
    """Open a source video for one pass through its frames.

    Args:
        notes: gets a line for each defect that does not reject the video, after the last frame.

    Raises:
        BadVideo: the video cannot be read, or a frame is damaged; also while iterating.
    """
    if video.frames:
        yield _open_images(video, notes)
        return
    source = decoder_input(video)
    timing = measure(source)
    start_s = video.start_s or 0.0
    with ExitStack() as stack:
        opened = stack.enter_context(open_video(source))
        frames: Iterator[VideoFrame] | None = chain([opened.first], opened.rest)
        if start_s > 0 and should_seek(opened, start_s):
            frames = frames_after_seek(opened, start_s)
            if frames is None:  # no reliable random access point
                opened = stack.enter_context(open_video(source))
                frames = chain([opened.first], opened.rest)
        assert frames is not None
        intact = IntactFrames(frames, opened)
        yield OpenedSource(
            timed=_on_screen_from(start_s, ((opened.start_s(frame), frame) for frame in intact)),
            first=opened.first,
            rotation=rotation(opened.first),
            rate=timing.nominal or _single_rate(opened),
            mean_rate=timing.mean or _single_rate(opened),
            rate_mode=timing.rate_mode,
            frames=max(timing.frames, 1),
            start_s=start_s,
            end_s=math.inf if video.end_s is None else video.end_s,
            pixel_aspect=_noted_aspect(pixel_aspect(opened.stream), notes),
            notes=notes,
        )
        if video.start_s is None and video.end_s is None:
            notes.extend(intact.missing())
        elif intact.note:
            notes.append(intact.note)


def decoder_input(video: SourceVideo) -> bytes | Path:
    """The input of `open_video`: a file, or the bytes of a remote file or a tar member.

    Raises:
        BadVideo: there is no such file, or the tar ends before the member does.
        StorageError: a remote file cannot be read after all retries.
    """
    if video.member is None and not video.url:
        return video.path
    offset, length = video.member or (0, None)
    try:
        content = video.place.read(offset, length)
    except StorageError as error:
        if isinstance(error, StorageUnavailable) or (video.url and not error.is_missing):
            raise
        raise BadVideo(str(error)) from error
    if length is not None and len(content) < length:
        raise BadVideo(f"{video.path.name} ends before this member of it does")
    return content


def fetch(video: SourceVideo, file: Path) -> None:
    """Download a video to a file of this machine.

    Raises:
        BadVideo: there is no such file, or the tar ends before the member does.
        StorageError: the video cannot be read after all retries.
    """
    source = decoder_input(video) if video.member is not None else None
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
    """Digest of the bytes of a video, independent of its name and location.

    Raises:
        BadVideo: the bytes cannot be read.
    """
    digest = hashlib.sha256()
    try:
        for block in _blocks(video):
            digest.update(block)
    except OSError as error:
        raise_if_outage(error, f"cannot read {video.path}")
        raise BadVideo(f"cannot read it: {error.strerror or error}") from error
    return digest.hexdigest()[:32]


def _blocks(video: SourceVideo) -> Iterator[bytes]:
    offset, length = video.member or (0, None)
    for path in [video.path / name for name in video.frames] or [video.path]:
        yield from read_blocks(path, offset, length)


def _single_rate(opened: OpenedVideo) -> Fraction:
    """Rate of a video of one frame."""
    interval_s = nominal_frame_s(opened)
    for claimed in (opened.stream.average_rate, opened.stream.base_rate):
        if claimed and abs(1 / float(claimed) - interval_s) < interval_s / 4:
            return Fraction(claimed)
    return rational_rate(1 / interval_s)


def _noted_aspect(aspect: Fraction, notes: list[str]) -> Fraction:
    if aspect != 1:
        notes.append(f"pixels of {aspect} were made square")
    return aspect


def _on_screen_from(
    start_s: float, timed: Iterator[tuple[float, VideoFrame]]
) -> Iterator[tuple[float, VideoFrame]]:
    """Skip the frames that are no longer displayed at the start."""
    shown = None
    for entry in timed:
        if shown is not None and entry[0] > start_s:
            yield shown
        shown = entry
    if shown is not None:
        yield shown


def _open_images(video: SourceVideo, notes: list[str]) -> OpenedSource:
    rate = rational_rate(video.fps or _IMAGES_FPS)
    first, aspect = _read_image(video.path / video.frames[0])
    start_s = video.start_s or 0.0
    return OpenedSource(
        timed=_on_screen_from(start_s, _timed_images(video, first, rate)),
        first=first,
        rotation=rotation(first),
        rate=rate,
        mean_rate=rate,
        frames=len(video.frames),
        start_s=start_s,
        end_s=math.inf if video.end_s is None else video.end_s,
        pixel_aspect=_noted_aspect(aspect, notes),
        notes=notes,
        is_image_sequence=True,
    )


def _timed_images(
    video: SourceVideo, first: VideoFrame, rate: Fraction
) -> Iterator[tuple[float, VideoFrame]]:
    """Each image with its presentation time in seconds.

    Raises:
        BadVideo: an image cannot be read, or its upright size differs from the first one's.
    """
    size = _upright_size(first)
    for number, name in enumerate(video.frames):
        frame = _read_image(video.path / name)[0]
        width, height = _upright_size(frame)
        if (width, height) != size:
            raise BadVideo(
                f"image {name} has {width}x{height} pixels, {video.frames[0]} has {size[0]}x{size[1]}"
            )
        yield float(number / rate), frame


def _upright_size(frame: VideoFrame) -> tuple[int, int]:
    """Width and height of a frame after rotation."""
    return (frame.height, frame.width) if rotation(frame).transpose else (frame.width, frame.height)


def _read_image(path: Path) -> tuple[VideoFrame, Fraction]:
    """Read an image file as a frame, and the aspect ratio of its pixels.

    Raises:
        BadVideo: it cannot be read, or is larger than `MAX_PIXELS`.
    """
    try:
        require_regular_file(path)
        content = io.BytesIO(path.read_bytes())  # a file name would select the demuxer for numbered files
        with av.open(content, "r", options={"format_whitelist": _IMAGE_DEMUXERS}) as container:
            stream = container.streams.video[0]
            stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
            stream.codec_context.thread_count = 1
            frame = next(container.decode(video=0))
            return frame, pixel_aspect(stream)
    except (av.FFmpegError, OSError, IndexError, StopIteration) as error:
        if isinstance(error, OSError) and not isinstance(error, av.FFmpegError):
            raise_if_outage(error, f"cannot read {path}")
        reason = getattr(error, "strerror", None) or "it holds no image"
        raise BadVideo(f"image {path.name} cannot be read: {reason}") from error
