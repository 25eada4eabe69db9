"""The default layout: H.264 in which only every `stride`-th frame is a reference frame.

    frame     0 1 2 3 4 5 6 7 8 ...      stride 4, phase 2
    type      I P I b b b P b b ...      b: a frame that no other frame refers to

A reader of the frames phase, phase + stride, ... skips the others without decoding (`skip_frame=NONREF`). For
other readers it is an ordinary file with a constant rate. The phase is drawn for each video, so that a model
cannot learn the positions of reference frames. A key frame is forced at the phase, and all groups of pictures
are closed.
"""

from collections.abc import Iterator

from kinemae.data_tools.config import require
from kinemae.data_tools.curation.frame_stats import FrameStats
from kinemae.data_tools.encoding.encode import EncoderSettings, write_frames
from kinemae.data_tools.encoding.resample import cut_segments, resample
from kinemae.data_tools.encoding.source_decoder import open_source
from kinemae.data_tools.layouts.base import FAST, EncodedSample, Job, Layout, check_size_and_rate, check_x264
from kinemae.data_tools.randomness import derived_seed

# B frames must not be references and must not move. The other options make decoding fast.
_X264 = "b-adapt=0:b-pyramid=none:scenecut=0:cabac=0:no-deblock=1:weightp=0:open-gop=0:mbtree=0"
_DEFAULT_GOP = 32
_MAX_B_FRAMES = 16  # x264's limit


class StrideAligned(Layout):
    """Encodes for fast reading at one stride.

    Args:
        stride: the stride of training clips; multiples of it are as fast. 1 aligns nothing.
        short_side: in pixels; smaller videos keep their size.
        fps: frames per second; null keeps the rate of the source, or the nominal rate of a varying one.
        crf: x264's constant rate factor, 0 to 51.
        preset: x264's preset; slower ones make smaller files.
        gop: frames from key frame to key frame, a multiple of the stride; null uses 32 or the next lower
            multiple.
    """

    def __init__(
        self,
        *,
        stride: int = 4,
        short_side: int = 256,
        fps: float | None = None,
        crf: int = 23,
        preset: str = FAST,
        gop: int | None = None,
    ):
        require(1 <= stride <= _MAX_B_FRAMES + 1, "layout.args.stride", "lie in [1, 17]", stride)
        check_size_and_rate(short_side=short_side, fps=fps)
        check_x264(crf=crf, preset=preset)
        gop = _DEFAULT_GOP // stride * stride if gop is None else gop
        is_multiple = type(gop) is int and gop >= 1 and gop % stride == 0
        require(is_multiple, "layout.args.gop", f"be a multiple of stride={stride}", gop)
        self.stride, self.short_side, self.fps = stride, short_side, fps
        self.options = {
            "crf": str(crf),
            "preset": preset,
            "forced-idr": "1",
            "a53cc": "0",  # drops captions; sound is dropped too
            "x264-params": f"bframes={stride - 1}:{_X264}",
        }
        self.gop = gop

    def encode(self, job: Job) -> Iterator[EncodedSample]:
        with open_source(job.video, notes=job.notes) as source:
            video = resample(source, fps=self.fps, short_side=self.short_side)
            for segment in cut_segments(video, job.segment_rules):
                key = f"{job.key}-{segment.number:04d}" if job.segment_rules else job.key
                phase = derived_seed(job.seed, purpose=f"shard/phase/{key}") % self.stride
                file = job.folder / f"{key}.mp4"
                encoder = EncoderSettings(
                    codec="libx264", options=self.options, gop=self.gop, key_frame_at=phase
                )
                stats = FrameStats(is_on=job.curate)
                info = write_frames(file, stats.observe(segment.frames, video.rate), video.rate, encoder)
                is_aligned = phase < info.frames
                yield EncodedSample(
                    key=key,
                    file=file,
                    extension="mp4",
                    info=info,
                    start_s=segment.start_s,
                    reference_stride=self.stride if is_aligned else 1,
                    reference_phase=phase if is_aligned else 0,
                    columns=stats.columns(),
                )
