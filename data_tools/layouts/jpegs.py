"""Motion-JPEG in an mp4: each frame can be decoded alone, for several times the bytes."""

from collections.abc import Iterator

from kinemae.data_tools.config import require
from kinemae.data_tools.curation.frame_stats import FrameStats
from kinemae.data_tools.encoding.encode import EncoderSettings, mux_jpegs
from kinemae.data_tools.encoding.resample import cut_segments, resample
from kinemae.data_tools.encoding.source_decoder import OpenedSource, open_source
from kinemae.data_tools.index import VideoInfo
from kinemae.data_tools.layouts.base import EncodedSample, Job, Layout, check_size_and_rate, encode_frames
from kinemae.data_tools.stream.geometry import rotation

_JPEG_EXTENSIONS = (".jpg", ".jpeg")


class Jpegs(Layout):
    """Stores one JPEG per frame. JPEG files of a folder are copied if neither size nor rate changes.

    Args:
        quality: FFmpeg's scale, 2 (best) to 31.
        short_side: in pixels; smaller videos keep their size. null keeps every size.
        fps: frames per second; null keeps the rate of the source.
    """

    def __init__(self, *, quality: int = 3, short_side: int | None = 256, fps: float | None = None):
        require(2 <= quality <= 31, "layout.args.quality", "lie in [2, 31]", quality)
        check_size_and_rate(short_side=short_side, fps=fps)
        self.short_side, self.fps = short_side, fps
        options = {"qmin": str(quality), "qmax": str(quality)}
        self.encoder = EncoderSettings(codec="mjpeg", options=options, gop=1)

    def encode(self, job: Job) -> Iterator[EncodedSample]:
        if job.video.frames:
            with open_source(job.video, notes=[]) as source:
                sample = _copied(job, source) if self._can_copy(job, source) else None
            if sample is not None:
                yield sample
                return
        with open_source(job.video, notes=job.notes) as source:
            video = resample(source, fps=self.fps, short_side=self.short_side, jpeg=True)
            for segment in cut_segments(video, job.segment_rules):
                yield encode_frames(job, video, segment, self.encoder)

    def _can_copy(self, job: Job, source: OpenedSource) -> bool:
        """Check whether the files already have the size and rate of this layout."""
        video, first = job.video, source.first
        return (
            all(name.lower().endswith(_JPEG_EXTENSIONS) for name in video.frames)
            and video.start_s is None
            and video.end_s is None
            and source.pixel_aspect == 1
            and self.fps in (None, float(source.rate))
            and not job.segment_rules.may_cut(source.frames, source.rate)
            and (self.short_side is None or min(first.width, first.height) <= self.short_side)
        )


def _copied(job: Job, source: OpenedSource) -> EncodedSample | None:
    """The files as they are; None if one of them is rotated."""
    frames, stats = 0, FrameStats(is_on=job.curate)
    shown = (frame for _, frame in source.timed)
    for frame in stats.observe(shown, source.rate):  # decodes every file and checks for one size
        if any(rotation(frame)):
            return None
        frames += 1
    file = job.folder / f"{job.key}.mp4"
    files = [job.video.path / name for name in job.video.frames]
    mux_jpegs(file, files, source.rate, source.first)
    info = VideoInfo(
        frames=frames,
        duration_s=float(frames / source.rate),
        width=source.first.width,
        height=source.first.height,
        codec="mjpeg",
    )
    return EncodedSample(key=job.key, file=file, extension="mp4", info=info, columns=stats.columns())
