"""Read videos that are folders of images."""

import io
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
from av.video.frame import VideoFrame

from kinemae.data_tools.files import require_regular_file
from kinemae.data_tools.manifest.videos import SourceVideo
from kinemae.data_tools.storage.retries import raise_if_outage
from kinemae.data_tools.stream.container import MAX_PIXELS, BadVideo
from kinemae.data_tools.stream.geometry import pixel_aspect, rotation

# Single images only: "image2" reads numbered files and would open other files.
_IMAGE_DEMUXERS = "jpeg_pipe,png_pipe,bmp_pipe,webp_pipe,tiff_pipe,ppm_pipe,pgm_pipe,jpegls_pipe,j2k_pipe"


def timed_images(video: SourceVideo, first: VideoFrame, rate: Fraction) -> Iterator[tuple[float, VideoFrame]]:
    """Each image with its presentation time in seconds.

    Raises:
        BadVideo: an image cannot be read, or its upright size differs from the first one's.
    """
    size = upright_size(first)
    for number, name in enumerate(video.frames):
        frame = read_image(video.path / name)[0]
        width, height = upright_size(frame)
        if (width, height) != size:
            raise BadVideo(
                f"picture {name} has {width}x{height} pixels, {video.frames[0]} has {size[0]}x{size[1]}"
            )
        yield float(number / rate), frame


def upright_size(frame: VideoFrame) -> tuple[int, int]:
    """Width and height of a frame after rotation."""
    return (frame.height, frame.width) if rotation(frame)[0] else (frame.width, frame.height)


def read_image(path: Path) -> tuple[VideoFrame, Fraction]:
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
        reason = getattr(error, "strerror", None) or "it holds no picture"
        raise BadVideo(f"picture {path.name} cannot be read: {reason}") from error
