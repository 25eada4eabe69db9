"""Encoders by FFmpeg's name: their options for constant quality, and a check that this machine has them."""

from fractions import Fraction
from functools import cache
from typing import Final

import av
import av.logging
import numpy as np

from kinemae.data_tools.config import require

X264: Final = "libx264"
# Compared with x264's default ("medium"): half the time and 6 % fewer bytes, with slightly more noise.
FAST = "veryfast"
ENCODERS = (X264, "h264_nvenc", "h264_qsv")
MIN_WIDTH, MIN_HEIGHT = 160, 64  # of hardware encoders
_PRESETS = {
    X264: "ultrafast superfast veryfast faster fast medium slow slower veryslow".split(),  # noqa: SIM905
    "nvenc": "p1 p2 p3 p4 p5 p6 p7".split(),  # noqa: SIM905
    "qsv": "veryfast faster fast medium slow slower veryslow".split(),  # noqa: SIM905
}
_DEFAULT_PRESETS = {X264: FAST, "nvenc": "p4", "qsv": "veryfast"}


def check_encoder(name: str, *, quality: int, preset: str | None) -> None:
    """Reject arguments that the encoder would reject only at the first video.

    Raises:
        ValueError: an unknown encoder, quality or preset, or an encoder that PyAV or this machine lacks.
    """
    require(name in ENCODERS, "layout.args.encoder", f"be one of {', '.join(ENCODERS)}", name)
    require(0 <= quality <= 51, "layout.args.crf", "lie in [0, 51]", quality)
    presets = _PRESETS[_family(name)]
    require(preset in (None, *presets), "layout.args.preset", f"be one of {', '.join(presets)}", preset)
    problem = "" if name == X264 else _problem(name)
    if problem:
        raise ValueError(
            f"layout.args.encoder={name}: expected a device with this encoder, got {problem!r}; "
            f"fix: run on a machine that has one, or use {X264}"
        )


def encoder_options(name: str, *, quality: int, preset: str | None, b_frames: int) -> dict[str, str]:
    """Options of a hardware encoder for constant quality, with B frames that no other frame refers to.

    Args:
        quality: 0 (best) to 51: `crf` of x264, `cq` of NVENC, `global_quality` of Quick Sync.
        preset: of the encoder; None is a fast one.
    """
    family = _family(name)
    common = {"preset": preset or _DEFAULT_PRESETS[family], "bf": str(b_frames)}
    if family == "nvenc":
        same = {"rc": "vbr", "cq": str(quality), "b": "0", "no-scenecut": "1", "forced-idr": "1"}
        return {**common, **same, "b_ref_mode": "disabled"}
    if family == "qsv":
        return {**common, "global_quality": str(quality), "forced_idr": "1", "b_strategy": "0"}
    return {**common, "crf": str(quality)}


def pixel_format(name: str, wanted: str) -> str:
    """The pixel format in which an encoder takes frames of a 4:2:0 format."""
    return "nv12" if name == "h264_qsv" and wanted == "yuv420p" else wanted


def _family(name: str) -> str:
    return X264 if name == X264 else name.rpartition("_")[2]


@cache
def _problem(name: str) -> str:
    """The reason why an encoder cannot be used here; empty if it can."""
    level = av.logging.get_level()
    av.logging.set_level(av.logging.ERROR)
    try:
        with av.logging.Capture() as lines:
            _encode_one_frame(name)
    except (av.FFmpegError, av.codec.codec.UnknownCodecError) as error:
        return lines[0][2].strip() if lines else str(error)
    finally:
        av.logging.set_level(level)
    return ""


def _encode_one_frame(name: str) -> None:
    context = av.codec.CodecContext.create(name, "w")
    assert isinstance(context, av.VideoCodecContext)
    context.width, context.height, context.framerate = 256, 256, Fraction(25)
    context.pix_fmt = pixel_format(name, "yuv420p")
    context.options = encoder_options(name, quality=23, preset=None, b_frames=0)
    black_HWC = np.zeros((256, 256, 3), np.uint8)
    frame = av.VideoFrame.from_ndarray(black_HWC, format="rgb24").reformat(format=context.pix_fmt)
    frame.pts, frame.time_base = 0, Fraction(1, 25)
    context.encode(frame)
    context.encode(None)
