"""Pre-cut clips: each sample is a short video of exactly the frames of one training clip."""

from bisect import bisect_right
from collections.abc import Iterator
from itertools import groupby
from operator import itemgetter
from typing import Any

from kinemae.data_tools.config import require
from kinemae.data_tools.encoding.encode import EncoderSettings
from kinemae.data_tools.encoding.encoders import FAST, X264, check_encoder
from kinemae.data_tools.encoding.resample import ResampledVideo, Segment, SegmentRules, resample
from kinemae.data_tools.encoding.source_decoder import open_source
from kinemae.data_tools.layouts.base import EncodedSample, Job, Layout, check_size_and_rate, encode_frames
from kinemae.data_tools.manifest.videos import SourceVideo

# Training decodes every frame, so decoding must be fast.
_X264 = "scenecut=0:cabac=0:no-deblock=1:weightp=0:mbtree=0"


class Clips(Layout):
    """Encodes runs of every `stride`-th frame, which training reads with clip.stride=`stride`.

    A video that is too short gives one clip of all its frames; frames after the last full clip are dropped.

    Args:
        frames, stride: of a clip.
        clips: maximum number of clips per video, evenly spaced without overlap; null takes all that fit.
        short_side: in pixels; smaller videos keep their size.
        fps: frame rate of the video before the stride; null keeps the rate of the source.
        crf: x264's constant rate factor, 0 to 51.
    """

    can_cut = False

    def __init__(
        self,
        *,
        frames: int = 16,
        stride: int = 4,
        clips: int | None = None,
        short_side: int = 256,
        fps: float | None = None,
        crf: int = 23,
    ):
        require(frames >= 1, "layout.args.frames", "be at least 1", frames)
        require(stride >= 1, "layout.args.stride", "be at least 1", stride)
        is_count = clips is None or (type(clips) is int and clips >= 1)
        require(is_count, "layout.args.clips", "be at least 1, or null", clips)
        check_size_and_rate(short_side=short_side, fps=fps)
        check_encoder(X264, quality=crf, preset=FAST)
        self.frames, self.stride, self.clips = frames, stride, clips
        self.short_side, self.fps = short_side, fps
        options = {"crf": str(crf), "preset": FAST, "a53cc": "0", "x264-params": _X264}
        self.encoder = EncoderSettings(codec=X264, options=options, gop=frames)

    def encode(self, job: Job) -> Iterator[EncodedSample]:
        with open_source(job.video, notes=job.notes) as source:
            video = resample(source, fps=self.fps, short_side=self.short_side, every=self.stride)
            starts = self._starts(video.expected)
            for clip, group in groupby(self._clip_frames(video, starts), key=itemgetter(0)):
                segment = Segment(
                    suffix=f"-{clip:04d}",
                    start_s=video.start_s + float(starts[clip] / video.rate),
                    frames=(frame for _, frame in group),
                )
                sample = encode_frames(job, video, segment, self.encoder)
                if sample.info.frames == self.frames or clip == 0:
                    yield sample
                elif sample.file is not None:  # the video has fewer frames than its container states
                    sample.file.unlink()

    def check(self, video: SourceVideo, segment_rules: SegmentRules) -> None:
        if segment_rules:
            raise ValueError(
                "layout.name=clips: expected no segment_s and scene_cuts, because it cuts videos by its own "
                "arguments, got one; fix: leave them out"
            )

    def _clip_frames(self, video: ResampledVideo, starts: list[int]) -> Iterator[tuple[int, Any]]:
        """The frames of the clips, each with the number of its clip."""
        for number, frame in enumerate(video.frames):
            clip = bisect_right(starts, number) - 1
            if clip >= 0 and number < starts[clip] + self.frames:
                yield clip, frame

    def _starts(self, expected: int) -> list[int]:
        """First frames of the clips, in ascending order."""
        fitting = max(expected // self.frames, 1)
        if self.clips is None or self.clips >= fitting:
            return [clip * self.frames for clip in range(fitting)]
        rest = expected - self.frames
        if self.clips == 1:
            return [rest // 2]
        return [round(clip * rest / (self.clips - 1)) for clip in range(self.clips)]
