"""Pictures by torchcodec, the optional second decoder: the same frames as PyAV's, already RGB.

It skips nothing and converts every frame it gives, so on the CPU it is the slower one.
"""

import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from kinemae.data_tools.stream.container import SLACK_S, BadVideo, open_container
from kinemae.data_tools.stream.geometry import pixel_aspect
from kinemae.data_tools.stream.yuv_planes import YuvFrame


def require_torchcodec() -> None:
    """Refuse to begin without the package.

    Raises:
        ValueError: it is not installed.
    """
    if importlib.util.find_spec("torchcodec") is None:
        raise ValueError(
            "data.decoder=torchcodec needs the package torchcodec, which is not installed: "
            "pip install 'kinemae[torchcodec]', or set data.decoder=pyav"
        )


def yuv_frames_at(
    video: bytes, timestamps_s: Sequence[float], *, last_frame_s: float | None = None
) -> Iterator[tuple[YuvFrame, list[int]]]:
    """See `planes.yuv_frames_at`; the pictures are RGB.

    Raises:
        BadVideo: it cannot be read, or it ends before `last_frame_s`.
    """
    # PyAV looks first: containers that open other files and pictures that are too large go no further.
    with open_container(video) as (_, stream):
        index, aspect = stream.index, pixel_aspect(stream)
    order = sorted(range(len(timestamps_s)), key=timestamps_s.__getitem__)
    with _errors():
        decoder = _decoder(video, index)
        begin_s, end_s = decoder.metadata.begin_stream_seconds, decoder.metadata.end_stream_seconds
        if last_frame_s is not None and end_s - begin_s < min(last_frame_s, timestamps_s[order[-1]]) - 1e-3:
            raise BadVideo(
                f"it ends at {end_s - begin_s:.3f} s, the index promises a frame at {last_frame_s:.3f} s"
            )
    for place in order:
        at_s = begin_s + timestamps_s[place] + SLACK_S
        with _errors():
            is_over = at_s >= end_s  # the last frame stays
            frame = decoder.get_frame_at(-1) if is_over else decoder.get_frame_played_at(at_s)
        yield YuvFrame(planes=(frame.data.numpy(),), colour=None, aspect=aspect), [place]


def _decoder(video: bytes, index: int) -> Any:
    from torchcodec.decoders import VideoDecoder  # optional, and slow to import

    return VideoDecoder(video, stream_index=index, dimension_order="NHWC", num_ffmpeg_threads=1)


@contextmanager
def _errors() -> Iterator[None]:
    try:
        yield
    except (RuntimeError, ValueError, IndexError) as error:
        raise BadVideo(f"torchcodec cannot read it: {' '.join(str(error).split())[:200]}") from error
