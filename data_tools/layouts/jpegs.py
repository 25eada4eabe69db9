"""A JPEG for each frame, as Motion-JPEG in an mp4: any frame is decoded alone, at several times the bytes."""

from collections.abc import Iterator

from kinemae.data_tools.config import require
from kinemae.data_tools.encoding.encode import EncoderSettings, mux_jpegs, write_frames
from kinemae.data_tools.encoding.resample import cut_segments, resample
from kinemae.data_tools.encoding.source_decoder import OpenedSource, open_source
from kinemae.data_tools.index import VideoInfo
from kinemae.data_tools.layouts.base import EncodedSample, Job, Layout, check_picture
from kinemae.data_tools.stream.geometry import rotation

_JPEG_ENDINGS = (".jpg", ".jpeg")


class Jpegs(Layout):
    """Stores pictures. JPEG files of a folder of pictures go in untouched where size and rate may stay.

    Args:
        quality: FFmpeg's scale, 2 (best) to 31.
        short_side: in pixels; smaller videos keep their size. null keeps every size.
        fps: pictures a second; null keeps the video's own rate.
    """

    def __init__(self, *, quality: int = 3, short_side: int | None = 256, fps: float | None = None):
        require(2 <= quality <= 31, "layout.args.quality", "lie in [2, 31]", quality)
        check_picture(short_side=short_side, fps=fps)
        self.short_side, self.fps = short_side, fps
        self.encoder = EncoderSettings(
            codec="mjpeg", options={"qmin": str(quality), "qmax": str(quality)}, gop=1
        )

    def encode(self, job: Job) -> Iterator[EncodedSample]:
        """See `Layout.encode`."""
        if not job.segment_rules and job.video.frames:
            with open_source(job.video, notes=[]) as original:
                sample = _untouched(job, original) if self._may_stay(job, original) else None
            if sample is not None:
                yield sample
                return
        with open_source(job.video, notes=job.notes) as original:
            video = resample(original, fps=self.fps, short_side=self.short_side, jpeg=True)
            for segment in cut_segments(video, job.segment_rules):
                key = f"{job.key}-{segment.number:04d}" if job.segment_rules else job.key
                file = job.folder / f"{key}.mp4"
                info = write_frames(file, segment.frames, video.rate, self.encoder)
                yield EncodedSample(key=key, file=file, ending="mp4", info=info, start_s=segment.start_s)

    def _may_stay(self, job: Job, original: OpenedSource) -> bool:
        """Whether the files themselves are what this layout would make."""
        video, first = job.video, original.first
        return (
            all(name.lower().endswith(_JPEG_ENDINGS) for name in video.frames)
            and video.start_s is None
            and video.end_s is None
            and original.pixel_aspect == 1
            and self.fps in (None, float(original.rate))
            and (self.short_side is None or min(first.width, first.height) <= self.short_side)
        )


def _untouched(job: Job, original: OpenedSource) -> EncodedSample | None:
    """The files as they are; None if one is to be turned."""
    frames = 0
    for _, frame in original.timed:  # each is decoded, and has to be of one size
        if any(rotation(frame)):
            return None
        frames += 1
    file = job.folder / f"{job.key}.mp4"
    files = [job.video.path / name for name in job.video.frames]
    mux_jpegs(file, files, original.rate, original.first)
    info = VideoInfo(
        frames=frames,
        duration_s=float(frames / original.rate),
        width=original.first.width,
        height=original.first.height,
        codec="mjpeg",
    )
    return EncodedSample(key=job.key, file=file, ending="mp4", info=info)
