"""Copy: the unchanged bytes of each video, in any codec."""

from collections.abc import Iterator
from pathlib import Path

from kinemae.data_tools.curation.frame_stats import FrameStats
from kinemae.data_tools.encoding.resample import SegmentRules
from kinemae.data_tools.encoding.source_decoder import decoder_input
from kinemae.data_tools.layouts.base import EncodedSample, Job, Layout
from kinemae.data_tools.manifest.videos import VIDEO_EXTENSIONS, SourceVideo
from kinemae.data_tools.stream.container import open_container
from kinemae.data_tools.stream.decode import probe

# By FFmpeg's names of containers; the first name in a file's format decides.
_EXTENSIONS = {
    "mp4": "mp4",
    "webm": "mkv",
    "matroska": "mkv",
    "avi": "avi",
    "gif": "gif",
    "mpegts": "ts",
    "mpeg": "mpg",
    "flv": "flv",
    "asf": "wmv",
    "ogg": "ogg",
}
_FIX = "fix: set layout.name to h264, clips or jpegs"


class Copy(Layout):
    """Encodes nothing. Each video is decoded once, to check that it is readable."""

    can_cut = False

    def encode(self, job: Job) -> Iterator[EncodedSample]:
        source = decoder_input(job.video)
        stats = FrameStats(is_on=job.curate)
        info = probe(source, notes=job.notes, stats=stats)
        extension = _extension(job.video.name, source)
        yield EncodedSample(key=job.key, file=None, extension=extension, info=info, columns=stats.columns())

    def check(self, video: SourceVideo, segment_rules: SegmentRules) -> None:
        if segment_rules:
            raise ValueError(
                "layout.name=copy: expected no segment_s and scene_cuts, because it stores videos unchanged, "
                f"got one; {_FIX}"
            )
        if video.frames:
            raise ValueError(
                f"layout.name=copy: expected video files, got the folder of images {video.name}; {_FIX}"
            )
        if video.start_s is not None or video.end_s is not None:
            raise ValueError(
                f"layout.name=copy: expected whole files, got {video.name} with start_s or end_s; {_FIX}"
            )


def _extension(name: str, source: bytes | Path) -> str:
    """The file extension of a video; derived from the container if the name has no known video extension."""
    extension = Path(name).suffix[1:].lower()
    if extension in VIDEO_EXTENSIONS:
        return extension
    with open_container(source) as (container, _):
        names = container.format.name.split(",")
    return next(_EXTENSIONS[kind] for kind in _EXTENSIONS if kind in names)
