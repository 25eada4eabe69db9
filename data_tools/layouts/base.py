"""What a layout is: it decides how a video of a source is stored, in one pass through its frames."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from kinemae.data_tools.config import require
from kinemae.data_tools.encoding.resample import SegmentRules
from kinemae.data_tools.index import VideoInfo
from kinemae.data_tools.manifest.videos import SourceVideo

# Against x264's own default ("medium") half the time at 6 % fewer bytes, for a little more noise.
FAST = "veryfast"
_PRESETS = ("ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow")


@dataclass(frozen=True, kw_only=True)
class Job:
    """One video of a source, to be sample out.

    Attributes:
        key: of the sample, or the beginning of the keys of its samples.
        folder: where files may be written; they are named after their samples' keys.
        seed: of the run.
        notes: gets a line about whatever is odd about the video but no reason to reject it.
    """

    video: SourceVideo
    key: str
    folder: Path
    seed: int = 0
    segment_rules: SegmentRules = field(default_factory=SegmentRules)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class EncodedSample:
    """One sample of a data set.

    Attributes:
        key: the job's, followed by a number where the video gives several samples.
        file: the stored video; None where it is the original itself, bytes untouched.
        ending: of the member in the tar.
        start_s: where in the original it begins.
        reference_stride, reference_phase: as in the index.
    """

    key: str
    file: Path | None
    ending: str
    info: VideoInfo
    start_s: float = 0.0
    reference_stride: int = 1
    reference_phase: int = 0


class Layout:
    """A way of storing videos; a new one is a file in this folder."""

    def encode(self, job: Job) -> Iterator[EncodedSample]:
        """Decode the video from end to end, and store it.

        Equal originals, keys and seeds give equal files. A file is complete before its sample is yielded.

        Raises:
            BadVideo: the video cannot be read, or this layout cannot hold it.
            DataError: a file cannot be written.
        """
        raise NotImplementedError

    def check(self, video: SourceVideo, segment_rules: SegmentRules) -> None:
        """Refuse what this layout can never store, before anything is decoded.

        Raises:
            ValueError: the message says which layouts can.
        """


def check_picture(*, short_side: int | None, fps: float | None) -> None:
    """Refuse sizes and rates that no video has."""
    is_size = short_side is None or (type(short_side) is int and short_side >= 2)
    require(is_size, "layout.args.short_side", "be a whole number from 2 on, or null", short_side)
    is_rate = fps is None or (type(fps) in (int, float) and 0.001 <= fps <= 1000)
    require(is_rate, "layout.args.fps", "lie in [0.001, 1000], or be null", fps)


def check_x264(*, crf: int, preset: str = FAST) -> None:
    """Refuse what x264 would refuse only at the first video."""
    require(0 <= crf <= 51, "layout.args.crf", "lie in [0, 51]", crf)
    require(preset in _PRESETS, "layout.args.preset", f"be one of {', '.join(_PRESETS)}", preset)
