"""Interface of layouts: a layout encodes a video of a source in one pass through its frames."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from kinemae.data_tools.config import require
from kinemae.data_tools.curation.frame_stats import FrameStats
from kinemae.data_tools.encoding.encode import EncoderSettings, write_frames
from kinemae.data_tools.encoding.resample import ResampledVideo, Segment, SegmentRules
from kinemae.data_tools.index import VideoInfo
from kinemae.data_tools.manifest.videos import SourceVideo


@dataclass(frozen=True, kw_only=True)
class Job:
    """One video to encode.

    Attributes:
        key: key of the sample, or prefix of the keys of its samples.
        folder: folder for the encoded files, which are named after the keys.
        notes: receives a line for each anomaly that is no reason to reject the video.
        curate: compute the curation columns.
    """

    video: SourceVideo
    key: str
    folder: Path
    segment_rules: SegmentRules = field(default_factory=SegmentRules)
    notes: list[str] = field(default_factory=list)
    curate: bool = False


@dataclass(frozen=True, kw_only=True)
class EncodedSample:
    """One sample of a data set.

    Attributes:
        key: the key of the job, followed by a number if the video gives several samples.
        file: the encoded video; None for the unchanged bytes of the source.
        extension: of the member in the tar.
        start_s: start of the sample in the source.
        reference_stride, reference_phase, frame_step: as in the index.
        columns: curation columns by name, see `curation.frame_stats`.
    """

    key: str
    file: Path | None
    extension: str
    info: VideoInfo
    start_s: float = 0.0
    reference_stride: int = 1
    reference_phase: int = 0
    frame_step: int = 1
    columns: Mapping[str, int | float | str] = field(default_factory=dict)


class Layout:
    """A way of encoding videos; each file in this folder adds one.

    Attributes:
        can_cut: whether it supports `SegmentRules`.
    """

    can_cut = True

    def encode(self, job: Job) -> Iterator[EncodedSample]:
        """Decode a video from start to end, and encode it.

        Equal sources and keys give equal files. A file is complete before its sample is yielded.

        Raises:
            BadVideo: the video is unreadable, or this layout cannot hold it.
            DataError: a file cannot be written.
        """
        raise NotImplementedError

    def check(self, video: SourceVideo, segment_rules: SegmentRules) -> None:
        """Reject videos and options that this layout does not support, before a video is decoded.

        Raises:
            ValueError: the message states which layouts do.
        """


def check_size_and_rate(*, short_side: int | None, fps: float | None) -> None:
    """Reject invalid sizes and frame rates."""
    is_size = short_side is None or (type(short_side) is int and short_side >= 2)
    require(is_size, "layout.args.short_side", "be a whole number from 2 on, or null", short_side)
    is_rate = fps is None or (type(fps) in (int, float) and 0.001 <= fps <= 1000)
    require(is_rate, "layout.args.fps", "lie in [0.001, 1000], or be null", fps)


def encode_frames(
    job: Job,
    video: ResampledVideo,
    segment: Segment,
    encoder: EncoderSettings,
    *,
    reference_stride: int = 1,
) -> EncodedSample:
    """Encode a segment of a video to an mp4 in the job's folder, named after the key of its sample.

    Raises:
        BadVideo: the frames cannot be decoded or encoded.
        DataError: the file cannot be written.
    """
    key = job.key + segment.suffix
    file = job.folder / f"{key}.mp4"
    stats = FrameStats(is_on=job.curate)
    info = write_frames(file, stats.observe(segment.frames, video.rate), video.rate, encoder)
    return EncodedSample(
        key=key,
        file=file,
        extension="mp4",
        info=info,
        start_s=segment.start_s,
        reference_stride=reference_stride,
        frame_step=video.every,
        columns=stats.columns(),
    )
