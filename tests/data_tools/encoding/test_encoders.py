"""Hardware encoders are found before the first video, and their failures do not reject videos."""

from fractions import Fraction
from pathlib import Path

import av
import pytest

from kinemae.data_tools.command import DataError
from kinemae.data_tools.encoding import encode, encoders
from kinemae.data_tools.encoding.encode import EncoderSettings, write_frames
from kinemae.data_tools.encoding.encoders import ENCODERS, X264, encoder_options
from kinemae.data_tools.layouts.h264 import H264
from kinemae.data_tools.stream.container import BadVideo
from tests.sharding import moving, shard, write_clip

DEVICES = [name for name in ENCODERS if name != X264]


def frames(count: int = 6, height: int = 96, width: int = 192) -> list[av.VideoFrame]:
    pictures = moving(count, height, width)
    return [av.VideoFrame.from_ndarray(one, format="rgb24").reformat(format="yuv420p") for one in pictures]


def settings(name: str) -> EncoderSettings:
    options = encoder_options(name, quality=23, preset=None, b_frames=1)
    return EncoderSettings(codec=name, options=options, gop=4)


@pytest.mark.parametrize("name", DEVICES)
def test_an_encoder_without_a_device_is_an_error_before_the_first_video(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    if not encoders._problem(name):
        pytest.skip(f"this machine has {name}")
    write_clip(tmp_path / "videos" / "a.mp4", 0)
    assert shard(tmp_path / "videos", tmp_path / "out", f"layout.args.encoder={name}") == 2
    error = capsys.readouterr().err
    assert f"layout.args.encoder={name}: expected a device with this encoder, got '" in error
    assert "fix: run on a machine that has one, or use libx264" in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", DEVICES)
def test_a_device_that_fails_does_not_reject_the_video(name: str, tmp_path: Path):
    if not encoders._problem(name):
        pytest.skip(f"this machine has {name}")
    with pytest.raises(
        DataError, match=rf"{name}: expected a device that encodes, got .*; fix: set fewer workers"
    ):
        write_frames(tmp_path / "a.mp4", frames(), Fraction(25), settings(name))
    with pytest.raises(BadVideo, match=r"frames of 64x48 are smaller than 160x64, the minimum of"):
        write_frames(tmp_path / "a.mp4", frames(height=48, width=64), Fraction(25), settings(name))
    assert not list(tmp_path.iterdir())


def test_frames_of_another_pixel_format_give_the_same_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Quick Sync takes nv12; x264 takes it too, so the conversion is tested with x264."""
    write_frames(tmp_path / "planes.mp4", frames(), Fraction(25), settings(X264))
    monkeypatch.setattr(encode, "pixel_format", lambda name, wanted: "nv12")
    write_frames(tmp_path / "nv12.mp4", frames(), Fraction(25), settings(X264))
    found = []
    for name in ("planes", "nv12"):
        with av.open(str(tmp_path / f"{name}.mp4")) as container:
            found.append([one.to_ndarray(format="gray").tobytes() for one in container.decode(video=0)])
    assert len(found[0]) == 6
    assert found[0] == found[1]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            {"encoder": "h264_nvnec"},
            "layout.args.encoder must be one of libx264, h264_nvenc, h264_qsv, got 'h264_n",
        ),
        ({"preset": "p4"}, "layout.args.preset must be one of ultrafast, .*, veryslow, got 'p4'"),
        (
            {"encoder": "h264_nvenc", "preset": "fast"},
            "layout.args.preset must be one of p1, .*, p7, got 'fast'",
        ),
    ],
)
def test_a_wrong_encoder_or_preset_names_those_that_exist(arguments: dict[str, str], message: str):
    with pytest.raises(ValueError, match=message):
        H264(**arguments)  # type: ignore[arg-type]
