"""The bytes of each video as they are, whatever the codec."""

from collections.abc import Iterator
from pathlib import Path

from kinemae.data_tools.encoding.resample import SegmentRules
from kinemae.data_tools.encoding.source_decoder import decoder_input
from kinemae.data_tools.layouts.base import EncodedSample, Job, Layout
from kinemae.data_tools.manifest.videos import VIDEO_ENDINGS, SourceVideo
from kinemae.data_tools.stream.container import open_container
from kinemae.data_tools.stream.decode import probe

# FFmpeg's names of containers, the first that a file's format has.
_ENDINGS = {
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
_CUTTING = "layout.name=stride_aligned, clips or jpegs"


class Copy(Layout):
    """Encodes nothing. A video is decoded once, to see that it can be."""

    def encode(self, job: Job) -> Iterator[EncodedSample]:
        """See `Layout.encode`."""
        source = decoder_input(job.video)
        info = probe(source, notes=job.notes)
        yield EncodedSample(key=job.key, file=None, ending=_ending(job.video.name, source), info=info)

    def check(self, video: SourceVideo, segment_rules: SegmentRules) -> None:
        """See `Layout.check`."""
        if segment_rules:
            raise ValueError(
                f"layout.name=copy leaves videos as they are and cannot cut them; use {_CUTTING} "
                "with segment_s and scene_cuts"
            )
        if video.frames:
            raise ValueError(
                f"{video.name} is a folder of pictures and layout.name=copy stores files of videos; "
                f"use {_CUTTING}"
            )
        if video.start_s is not None or video.end_s is not None:
            raise ValueError(
                f"{video.name} is a part of a video (start_s, end_s) and layout.name=copy stores whole "
                f"files; use {_CUTTING}"
            )


def _ending(name: str, source: bytes | Path) -> str:
    """The file extension of a video; derived from the container if the name has no known video extension."""
    ending = Path(name).suffix[1:].lower()
    if ending in VIDEO_ENDINGS:
        return ending
    with open_container(source) as (container, _):
        names = container.format.name.split(",")
    return next(_ENDINGS[kind] for kind in _ENDINGS if kind in names)
