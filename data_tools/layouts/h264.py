"""The default layout: H.264 at about 15 frames per second, of which every second frame can be skipped.

    frame     0 1 2 3 4 5 6 7 ...      b_frames 1
    type      I b P b P b P b ...      b: a frame that no other frame refers to

A reader of the frames 0, 2, 4, ... does not decode the others (`skip_frame=NONREF`). For other readers it is
an ordinary file with a constant rate. All groups of pictures are closed.
"""

from collections.abc import Iterator

from kinemae.data_tools.config import require
from kinemae.data_tools.encoding.encode import EncoderSettings
from kinemae.data_tools.encoding.encoders import X264, check_encoder, encoder_options
from kinemae.data_tools.encoding.resample import cut_segments, resample
from kinemae.data_tools.encoding.source_decoder import open_source
from kinemae.data_tools.layouts.base import EncodedSample, Job, Layout, check_size_and_rate, encode_frames

# B frames must not be references and must not move. The other options make decoding fast.
_X264 = "b-adapt=0:b-pyramid=none:scenecut=0:cabac=0:no-deblock=1:weightp=0:open-gop=0:mbtree=0"
_MAX_B_FRAMES = 16  # x264's limit


class H264(Layout):
    """Encodes for fast reading of every second stored frame, by default every fourth frame of the source.

    Args:
        every: store every n-th frame; null uses 1, 2 or 4, for a rate near 15 frames per second.
        short_side: in pixels; smaller videos keep their size.
        fps: frames per second before `every`; null keeps the rate of the source, or the nominal rate of a
            variable one.
        crf: x264's constant rate factor, 0 to 51.
        encoder: FFmpeg's name: libx264, or h264_nvenc or h264_qsv on a machine with such a device.
        preset: of the encoder; slower ones make smaller files. null uses veryfast, of NVENC p4.
        gop: stored frames from key frame to key frame, a multiple of `b_frames` + 1.
        b_frames: frames between two reference frames.
    """

    def __init__(  # noqa: PLR0913 - keyword-only
        self,
        *,
        every: int | None = None,
        short_side: int = 256,
        fps: float | None = None,
        crf: int = 23,
        encoder: str = X264,
        preset: str | None = None,
        gop: int = 32,
        b_frames: int = 1,
    ):
        is_count = every is None or (type(every) is int and 1 <= every <= 4)
        require(is_count, "layout.args.every", "lie in [1, 4], or be null", every)
        require(0 <= b_frames <= _MAX_B_FRAMES, "layout.args.b_frames", "lie in [0, 16]", b_frames)
        check_size_and_rate(short_side=short_side, fps=fps)
        check_encoder(encoder, quality=crf, preset=preset)
        is_multiple = gop >= 1 and gop % (b_frames + 1) == 0
        require(is_multiple, "layout.args.gop", f"be a multiple of b_frames + 1 = {b_frames + 1}", gop)
        self.every, self.short_side, self.fps = every, short_side, fps
        self.stride = b_frames + 1 if encoder == X264 else 1  # a device may refer to B frames
        options = encoder_options(encoder, quality=crf, preset=preset, b_frames=b_frames)
        if encoder == X264:  # without captions; sound is dropped too
            options |= {"a53cc": "0", "x264-params": f"bframes={b_frames}:{_X264}"}
        self.encoder = EncoderSettings(codec=encoder, options=options, gop=gop)

    def encode(self, job: Job) -> Iterator[EncodedSample]:
        with open_source(job.video, notes=job.notes) as source:
            video = resample(source, fps=self.fps, short_side=self.short_side, every=self.every)
            for segment in cut_segments(video, job.segment_rules):
                yield encode_frames(job, video, segment, self.encoder, reference_stride=self.stride)
